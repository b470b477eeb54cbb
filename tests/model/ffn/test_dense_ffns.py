"""Dense feed-forwards: their equations written out, and equal sizes for gated and ungated ones."""

import math

import pytest
import torch

from fairway.core.errors import ConfigError
from fairway.model.ffn.gated import Config as Gated
from fairway.model.ffn.ungated import Config as Ungated
from fairway.model.lm import ModelConfig
from laws import building
from laws.mixers import sample

PHI = torch.special.ndtr


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


EQUATIONS = {
    ("relu", "exact"): lambda x: x.clamp_min(0),
    ("gelu", "exact"): lambda x: x * PHI(x),
    ("gelu", "tanh"): tanh_gelu,
    ("silu", "exact"): lambda x: x / (1 + torch.exp(-x)),
    ("relu2", "exact"): lambda x: x.clamp_min(0) ** 2,
    ("leaky_relu2", "exact"): lambda x: torch.where(x > 0, x, 0.5 * x) ** 2,
}
GATES = {
    ("glu", "exact"): lambda x: 1 / (1 + torch.exp(-x)),
    ("bilinear", "exact"): lambda x: x,
    ("reglu", "exact"): lambda x: x.clamp_min(0),
    ("geglu", "exact"): lambda x: x * PHI(x),
    ("geglu", "tanh"): tanh_gelu,
    ("swiglu", "exact"): lambda x: x / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize(("kind", "form"), EQUATIONS)
def test_ungated_feedforwards_are_their_equations(kind: str, form: str) -> None:
    ffn = building.opened(lambda: Ungated.model_validate({"kind": kind, "form": form}).build(12))
    x = sample(12)
    expected = EQUATIONS[kind, form](x @ ffn.input.weight.T) @ ffn.output.weight.T
    assert torch.allclose(ffn(x)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "form"), GATES)
def test_gated_feedforwards_gate_their_first_half(kind: str, form: str) -> None:
    ffn = building.opened(lambda: Gated.model_validate({"kind": kind, "form": form}).build(12))
    x, hidden = sample(12), ffn.output.weight.shape[1]
    w, v = ffn.input.weight[:hidden], ffn.input.weight[hidden:]
    expected = (GATES[kind, form](x @ w.T) * (x @ v.T)) @ ffn.output.weight.T
    assert torch.allclose(ffn(x)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [96, 192, 256, 768])
def test_gated_and_ungated_feedforwards_have_as_many_parameters(width: int) -> None:
    with torch.device("meta"):
        gated = sum(p.numel() for p in Gated(kind="swiglu").build(width).parameters())
        ungated = sum(p.numel() for p in Ungated(kind="relu2").build(width).parameters())
    assert abs(gated / ungated - 1) <= 4 * 3 / (8 * width) * 8


def test_a_form_where_there_is_but_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="has one form"):
        ModelConfig.read({"ffn": {"kind": "swiglu", "form": "tanh"}})


def test_the_matrices_of_a_gated_feedforward_are_told_apart() -> None:
    ffn = building.opened(lambda: Gated(kind="swiglu").build(12))
    assert ffn.input.pieces() == {"weight": (ffn.output.weight.shape[1],) * 2}
