"""Blocks: where the norms stand, what the branches are scaled by, and what runs side by side."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from fairway.core.errors import ConfigError
from fairway.model.block import Block
from fairway.model.lm import LanguageModel, ModelConfig
from laws import building
from laws.levels import at_level
from laws.mixers import sample
from laws.models import VOCABULARY, model_config

DRAWS = 4
"""Of tokens and upstream gradients, over which an error is taken: one alone may favour either side."""


def block(layer: int = 1, **settings: Any) -> Block:
    config = model_config(block=settings, depth={"kind": "plain", "layers": 3})
    made = building.opened(lambda: LanguageModel(config, VOCABULARY)).depth.blocks[layer]
    assert isinstance(made, Block)
    return made


def branches(made: Block) -> Any:
    return lambda x: made.mixer(x)[0], lambda x: made.ffn(x)[0], made.mixer_norm, made.ffn_norm


def test_pre_norm_adds_each_branch_of_the_normalised_stream() -> None:
    made, x = block(), sample()
    mixer, ffn, n1, n2 = branches(made)
    h = x + mixer(n1(x))
    assert torch.allclose(made(x)[0], h + ffn(n2(h)), rtol=0, atol=1e-12)


def test_post_norm_normalises_the_sum() -> None:
    made, x = block(placement="post"), sample()
    mixer, ffn, n1, n2 = branches(made)
    h = n1(x + mixer(x))
    assert torch.allclose(made(x)[0], n2(h + ffn(h)), rtol=0, atol=1e-12)


def test_sandwich_normalises_before_and_after() -> None:
    made, x = block(placement="sandwich"), sample()
    mixer, ffn, n1, n2 = branches(made)
    assert made.mixer_after is not None
    assert made.ffn_after is not None
    h = x + made.mixer_after(mixer(n1(x)))
    assert torch.allclose(made(x)[0], h + made.ffn_after(ffn(n2(h))), rtol=0, atol=1e-12)


def test_deepnorm_carries_more_of_the_stream() -> None:
    made, x = block(placement="deepnorm"), sample()
    mixer, ffn, n1, n2 = branches(made)
    a = 6**0.25
    h = n1(a * x + mixer(x))
    assert torch.allclose(made(x)[0], n2(a * h + ffn(h)), rtol=0, atol=1e-12)


def test_parallel_branches_read_the_same_input() -> None:
    made, x = block(parallel=True), sample()
    mixer, ffn, n1, n2 = branches(made)
    assert torch.allclose(made(x)[0], x + mixer(n1(x)) + ffn(n2(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [0, 2])
def test_scales_act_on_every_branch(layer: int) -> None:
    made, x = block(layer, residual_scale=0.5, depth_scale=True), sample()
    mixer, ffn, n1, n2 = branches(made)
    entering = (layer + 1) ** -0.5
    h = x + 0.5 * mixer(n1(x) * entering)
    assert torch.allclose(made(x)[0], h + 0.5 * ffn(n2(h) * entering), rtol=0, atol=1e-12)


def test_a_stream_that_normalised_branches_would_drown_is_scaled_up() -> None:
    for placement, scaled in (("pre", False), ("post", False), ("sandwich", True)):
        model = building.opened(
            lambda placement=placement: LanguageModel(model_config(block={"placement": placement}), VOCABULARY)
        )
        assert (model.scale is not None) == scaled


def test_learned_scales_begin_at_the_residual_scale() -> None:
    config = model_config(block={"learned_scale": True, "residual_scale": 0.25})
    model = building.built(lambda: LanguageModel(config, VOCABULARY), awake=False)
    gains = [value for name, value in model.named_parameters() if "_scale." in name]
    assert len(gains) == 4
    assert all(bool((gain == 0.25).all()) for gain in gains)


@pytest.mark.parametrize("placement", ["post", "deepnorm"])
def test_parallel_branches_without_a_place_for_their_norm_are_refused(placement: str) -> None:
    with pytest.raises(ConfigError, match="pre"):
        ModelConfig.read({"block": {"parallel": True, "placement": placement}})
    with pytest.raises(ConfigError, match="pre"):
        ModelConfig.read({"block": {"placement": placement}, "depth": {"kind": "skip", "parallel_from": 2}})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "rms"),
        ({"parallel": True}, "rms"),
        ({"placement": "sandwich", "depth_scale": True}, "rms"),
        ({"placement": "post"}, "rms"),
        ({"learned_scale": True}, "layer"),
    ],
)
def test_fused_norms_are_as_near_to_float64_as_those_apart(
    settings: dict[str, Any], kind: str, dtype: torch.dtype
) -> None:
    config = model_config(block=settings, norm={"kind": kind}, depth={"kind": "plain", "layers": 3})
    model = building.opened(lambda: LanguageModel(config, VOCABULARY), dtype=torch.float32)

    def outputs_and_gradients(
        model: LanguageModel, level: str | None, draw: int, *, half: bool = False
    ) -> list[torch.Tensor]:
        tokens = torch.arange(draw, draw + 80).view(2, 40) % VOCABULARY
        with at_level(level), torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = model(tokens).hidden_BTD
            up = torch.sin(torch.arange(draw, draw + float(y.numel()))).view(y.shape)
            used = [parameter for name, parameter in model.named_parameters() if not name.startswith("head")]
            gradients = torch.autograd.grad((y * up).sum(), used, allow_unused=True)
        return [y.detach(), *(gradient for gradient in gradients if gradient is not None)]

    wide = deepcopy(model).double()
    exact = [outputs_and_gradients(wide, None, draw) for draw in range(DRAWS)]

    def error(level: str | None) -> float:
        seen = [outputs_and_gradients(model, level, draw, half=dtype == torch.bfloat16) for draw in range(DRAWS)]
        pairs = [pair for draw in range(DRAWS) for pair in zip(seen[draw], exact[draw], strict=True)]
        return sum(float((a - b).norm() / b.norm()) for a, b in pairs) / len(pairs)

    assert len(exact[0]) > 10
    assert error("portable") <= 1.5 * error(None)
    assert error("portable") <= {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
