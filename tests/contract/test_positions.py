"""Every position technique: lengths are kept, only distances matter, and cutting a sequence changes nothing."""

import pytest
import torch

from fairway.core.config import Slot
from fairway.model.mixer.attention import Config as Attention
from fairway.model.parts import Position, PositionConfig
from laws import building
from laws.mixers import WIDTH, check_laws, sample, site
from laws.models import built_model, model_config, model_runner, sample_tokens
from laws.state import check_causal, check_split

SLOT = Slot("fairway.model.position", "rope")


def make(kind: str, head_width: int = 8, context: int = 16) -> Position:
    config = SLOT.config(kind)(kind=kind)
    assert isinstance(config, PositionConfig)
    return config.build(head_width, context, 48)


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_every_position_has_its_card(kind: str) -> None:
    building.check_card(lambda: make(kind))
    config = SLOT.config(kind)(kind=kind)
    assert isinstance(config, PositionConfig)
    if config.build_input(16, 48) is not None:
        building.check_card(lambda: config.build_input(16, 48) or torch.nn.Identity())


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_scores_depend_on_the_distance_alone(kind: str) -> None:
    position = make(kind)
    q, k = (torch.randn(2, 3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    place = torch.arange(7)[None]

    def scores(shift: int) -> torch.Tensor:
        return position.rotate(q, place + shift, 64) @ position.rotate(k, place + shift, 64).transpose(-1, -2)

    assert torch.allclose(scores(0), scores(31), rtol=0, atol=1e-10)
    norms = position.rotate(q, place, 64).norm(dim=-1) / q.norm(dim=-1)
    assert torch.allclose(norms, norms[0, 0, 0].expand_as(norms), atol=1e-12)


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_rotation_keeps_dtype_and_does_not_round_angles(kind: str) -> None:
    position = make(kind)
    x = sample(8, 5)[:, None]
    late = torch.arange(4000, 4005)[None]
    exact = position.rotate(x, late, 64)
    rough = position.rotate(x.bfloat16(), late, 64)
    assert rough.dtype == torch.bfloat16
    assert (rough.double() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kind", SLOT.kinds())
def test_attention_keeps_the_law_within_and_beyond_the_trained_length(kind: str, window: int | None) -> None:
    config = SLOT.config(kind)(kind=kind, **({"step": 4} if kind == "dynamic_ntk" else {}))
    assert isinstance(config, PositionConfig)
    place = site(config, context=8)
    check_laws(building.built(lambda: Attention(window=window, heads=3).build(WIDTH, place)), length=19)


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_models_keep_the_law_with_every_position(kind: str) -> None:
    model = built_model(model_config(position=kind))
    tokens = sample_tokens()
    check_split(model, model_runner(model, tokens), tokens.shape[1], 2)
    check_causal(lambda value: model(value).hidden_BTD, tokens)


def test_a_position_taken_from_the_call_in_the_place_of_the_state_is_noticed() -> None:
    mixer = building.opened(lambda: Attention(heads=3).build(WIDTH, site()))
    rotate = mixer.position.rotate
    mixer.position.rotate = lambda x, places, length: rotate(x, places - places[:, :1], length)
    with pytest.raises(AssertionError):
        check_laws(mixer)
