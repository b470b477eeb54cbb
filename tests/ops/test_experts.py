"""Grouped experts against the dense masked loop: outputs and all gradients, in float64."""

import pytest
import torch
from torch import Tensor

from fairway.model.activation import ACTIVATIONS
from fairway.ops.experts import grouped, naive


def tensors(gated: bool, experts: int = 5, tokens: int = 14) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(tokens, 6), (tokens, experts), (experts, 8 if gated else 4, 6), (experts, 6, 4)]
    return [torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("assignments", [0, 1, 20])
def test_grouped_experts_are_the_masked_loop_over_all(gated: bool, assignments: int) -> None:
    x, gates, w_in, w_out = tensors(gated)
    places = torch.randperm(14 * 4, generator=torch.Generator().manual_seed(1))[:assignments]
    token, expert = places // 4, places % 4
    mask = torch.zeros_like(gates).index_put((token, expert), torch.ones(assignments, dtype=torch.float64))
    weight = torch.randn(14, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    dense = naive.mix(x, gates * mask, w_in, w_out, ACTIVATIONS["silu"], gated=gated)
    sparse = grouped.mix(x, token, expert, gates[token, expert], w_in, w_out, ACTIVATIONS["silu"], gated=gated)
    assert torch.allclose(sparse, dense, rtol=0, atol=1e-11)
    ours = torch.autograd.grad((sparse * weight).sum(), [x, gates, w_in, w_out])
    theirs = torch.autograd.grad((dense * weight).sum(), [x, gates, w_in, w_out])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    assert not ours[2][4].any()
