"""Rotary positions against complex numbers and closed forms, in float64."""

import math
from typing import Any

import pytest
import torch

from fairway.core.config import Slot
from fairway.core.errors import ConfigError
from fairway.model import rotary
from fairway.model.lm import ModelConfig
from fairway.model.mixer.attention import Config as Attention
from fairway.model.parts import NO_CONTEXT, PositionConfig
from fairway.ops.attention.naive import attend
from laws import building
from laws.mixers import sample, site
from laws.models import built_model, model_config, sample_tokens

SLOT = Slot("fairway.model.position", "rope")


def position(kind: str, head_width: int = 8, context: int = 64, **settings: Any) -> Any:
    config = SLOT.config(kind).model_validate({"kind": kind, **settings})
    assert isinstance(config, PositionConfig)
    return config.build(head_width, context, 48)


def heads(width: int = 8, length: int = 7) -> torch.Tensor:
    return torch.randn(2, 3, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_multiplication_by_a_complex_number(interleaved: bool) -> None:
    rope, x = position("rope", interleaved=interleaved, offset=3, base=500.0), heads()
    pairs = torch.stack((x[..., 0::2], x[..., 1::2])) if interleaved else torch.stack((x[..., :4], x[..., 4:]))
    angle = (torch.arange(7)[:, None] + 3) * 500.0 ** (-2 * torch.arange(4, dtype=torch.float64) / 8)
    turned = torch.complex(*pairs) * torch.polar(torch.ones_like(angle), angle)
    y = rope.rotate(x, torch.arange(7)[None], 0)
    first, second = (y[..., 0::2], y[..., 1::2]) if interleaved else (y[..., :4], y[..., 4:])
    assert torch.allclose(first, turned.real, atol=1e-12)
    assert torch.allclose(second, turned.imag, atol=1e-12)


def test_rotations_add_up() -> None:
    rope, x, ones = position("rope"), heads(), torch.ones(1, 7, dtype=torch.int64)
    assert torch.allclose(rope.rotate(rope.rotate(x, 3 * ones, 0), 8 * ones, 0), rope.rotate(x, 11 * ones, 0))


def test_the_two_pairings_differ_by_a_permutation() -> None:
    x, places = heads(), torch.arange(7)[None]
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    half = position("rope").rotate(x[..., order], places, 0)
    assert torch.allclose(half, position("rope", interleaved=True).rotate(x, places, 0)[..., order], atol=1e-14)


def test_a_partial_rotation_leaves_the_rest_alone() -> None:
    x, places = heads(), torch.arange(7)[None]
    y = position("rope", fraction=0.5).rotate(x, places, 0)
    assert torch.equal(y[..., 4:], x[..., 4:])
    assert torch.allclose(y[..., :4], position("rope", 4).rotate(x[..., :4], places, 0))


def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor() -> None:
    plain, ntk = position("rope"), position("ntk", factor=4.0)
    assert ntk.theta_R[0] == plain.theta_R[0]
    assert ntk.theta_R[-1] == pytest.approx(plain.theta_R[-1] / 4, rel=1e-12)


def test_interpolated_positions_are_divided() -> None:
    x, places = heads(), torch.arange(7)[None]
    slow = position("position_interpolation", factor=4.0).rotate(x, 4 * places, 0)
    assert torch.allclose(slow, position("rope").rotate(x, places, 0), atol=1e-14)


def test_dynamic_ntk_is_plain_within_the_trained_length_and_ntk_like_beyond() -> None:
    dynamic = position("dynamic_ntk", context=16, factor=2.0, step=8)
    assert dynamic.frequencies(16) == position("rope").theta_R
    grown = 10_000.0 * (2.0 * 32 / 16 - 1) ** (8 / 6)
    assert dynamic.frequencies(32) == pytest.approx([grown ** (-2 * i / 8) for i in range(4)], rel=1e-12)
    places = torch.tensor([[0, 15, 16, 23, 24]])
    assert dynamic.span(places).tolist() == [[16, 16, 24, 24, 32]]


def test_attention_with_dynamic_ntk_turns_all_keys_by_the_length_of_the_query() -> None:
    config = SLOT.config("dynamic_ntk").model_validate({"kind": "dynamic_ntk", "step": 4})
    assert isinstance(config, PositionConfig)
    mixer = building.opened(lambda: Attention(heads=3, qk_norm=False).build(48, site(config, context=8)))
    x = sample()
    q, k, v = mixer._projected(x, NO_CONTEXT)
    expected = torch.zeros_like(q)
    for t in range(x.shape[1]):
        length = 8 if t < 8 else (t + 4) // 4 * 4
        place = torch.arange(t + 1)[None]
        turned_q = mixer.position.rotate(q[:, :, t : t + 1], place[:, -1:], length)
        turned_k = mixer.position.rotate(k[:, :, : t + 1], place, length)
        expected[:, :, t : t + 1] = attend(turned_q, turned_k, v[:, :, : t + 1])
    y = mixer.output(expected.transpose(1, 2).reshape(x.shape))
    assert torch.allclose(mixer(x)[0], y, rtol=0, atol=1e-10)


def test_yarn_sharpens_scores_by_the_square_of_its_magnitude() -> None:
    yarn = position("yarn", factor=8.0)
    assert yarn.magnitude == pytest.approx(0.1 * math.log(8) + 1)
    assert yarn.magnitude**2 == pytest.approx(1.459, abs=5e-4)
    x = heads()
    assert torch.allclose(yarn.rotate(x, torch.arange(7)[None], 0).norm(dim=-1), x.norm(dim=-1) * yarn.magnitude)
    assert position("yarn", temperature=False).magnitude == 1.0


def test_yarn_blends_by_turns_over_the_trained_length() -> None:
    yarn = position("yarn", 128, 4096, factor=8.0)
    for index in (0, 25, 30, 36, 40, 63):
        theta = 10_000.0 ** (-2 * index / 128)
        turns = 4096 * theta / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - 1) / 31))
        assert yarn.theta_R[index] == pytest.approx((1 - kept) * theta / 8 + kept * theta, rel=1e-12)


def test_the_two_ramps_of_yarn_differ_as_much_as_is_known() -> None:
    turns = position("yarn", 128, 4096, factor=8.0)
    index = position("yarn", 128, 4096, factor=8.0, ramp="index")
    ratios = [1 - a / b for a, b in zip(turns.theta_R, index.theta_R, strict=True)]
    assert max(ratios, key=abs) == ratios[36]
    assert ratios[36] == pytest.approx(0.57, abs=0.005)
    assert ratios[20] == pytest.approx(0.0, abs=1e-9)


def test_learned_positions_are_added_once_and_end_at_the_context() -> None:
    model = built_model(model_config(position="learned", context=17))
    names = [name for name, _ in model.named_parameters() if "position" in name]
    assert names == ["position.weight"]
    tokens = sample_tokens(17)
    model(tokens)
    with pytest.raises(ConfigError, match="18 tokens were given"):
        model(sample_tokens(18))
    state = model(tokens).state
    with pytest.raises(ConfigError, match="learned positions end"):
        model(tokens[:, :1], state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "yarn", "alpha": 40}, "alpha 40"),
        ({"kind": "llama3", "low": 5}, "low 5"),
        ({"kind": "ntk", "fraction": 0.1}, "two pairs at least"),
        ({"kind": "rope", "fraction": 0}, "fraction is 0"),
    ],
)
def test_positions_that_cannot_work_are_refused_when_the_recipe_is_read(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.read({"width": 48, "position": settings})


def test_heads_too_narrow_to_rotate_are_refused() -> None:
    with pytest.raises(ConfigError, match="no pair to rotate"):
        ModelConfig.read({"width": 8, "mixer": {"kind": "attention", "heads": 8}})


def test_angles_first_used_while_scoring_serve_training_afterwards() -> None:
    rope, place = position("rope", base=777.0), torch.arange(7)[None]
    with torch.inference_mode():
        rope.rotate(heads(), place, 0)
    x = heads().requires_grad_()
    rope.rotate(x * rope.angles(place, torch.float64)[0].sum(), place, 0).sum().backward()
    assert not rotary._table(rope.frequencies(0), torch.float64, x.device).is_inference()
