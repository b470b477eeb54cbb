"""Experts on the tokens sent to them only: sort by expert, one matrix product per expert, add back.

The same as `naive.mix` for gates that are zero but at the given assignments. No token is padded or dropped here. What
lies between the products is done once for all experts, and each product writes into its rows of one tensor.
Shape key: N tokens, D width, E experts, F hidden width, A assignments of a token to an expert, I inputs, O outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fairway.ops.experts.naive import Activation
from fairway.ops.gate.naive import Point
from fairway.ops.gate.native import gate

_POINTS: dict[Activation, Point] = {functional.relu: "relu", functional.silu: "silu", functional.gelu: "gelu"}


def mix(
    x_ND: Tensor,
    token_A: Tensor,
    expert_A: Tensor,
    gate_A: Tensor,
    input_EJD: Tensor,
    output_EDF: Tensor,
    activation: Activation,
    *,
    gated: bool,
) -> Tensor:
    """The sum over assignments of gate times expert, (N, D), in the dtype of the products.

    An expert without tokens gets a zero gradient, not none.
    """
    dtype = product_dtype(x_ND)
    order_A = expert_A.argsort(stable=True)
    counts = expert_A.bincount(minlength=len(input_EJD)).tolist()
    source_A = token_A.index_select(0, order_A)
    x_AD = x_ND.to(dtype).index_select(0, source_A)
    h_AJ = grouped_linear(x_AD, input_EJD.to(dtype), counts)
    y_AD = grouped_linear(_activated(h_AJ, activation, gated=gated), output_EDF.to(dtype), counts)
    y_AD = y_AD * gate_A.index_select(0, order_A)[:, None].to(dtype)
    return torch.zeros(x_ND.shape, dtype=dtype, device=x_ND.device).index_add(0, source_A, y_AD)


def grouped_linear(x_AI: Tensor, weight_EOI: Tensor, counts: Sequence[int]) -> Tensor:
    """`y = x W_e^T` for rows sorted by expert, `counts` of them for each; (A, O)."""
    return _Grouped.apply(x_AI, weight_EOI, counts)  # pyrefly: ignore


class _Grouped(torch.autograd.Function):
    """Products of the rows of each expert, forward and backward, without joining pieces afterwards."""

    @staticmethod
    def forward(ctx: Any, x_AI: Tensor, weight_EOI: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x_AI, weight_EOI)
        ctx.counts = counts
        y_AO = x_AI.new_empty(len(x_AI), weight_EOI.shape[1])
        for x, weight_OI, y in zip(x_AI.split(counts), weight_EOI, y_AO.split(counts), strict=True):
            torch.mm(x, weight_OI.t(), out=y)
        return y_AO

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        x_AI, weight_EOI = ctx.saved_tensors
        dx_AI, dweight_EOI = torch.empty_like(x_AI), torch.empty_like(weight_EOI)
        parts = (tensor.split(ctx.counts) for tensor in (upstream[0].contiguous(), x_AI, dx_AI))
        for dy, x, dx, weight_OI, dweight_OI in zip(*parts, weight_EOI, dweight_EOI, strict=True):
            torch.mm(dy, weight_OI, out=dx)
            torch.mm(dy.t(), x, out=dweight_OI)
        return dx_AI, dweight_EOI, None


def _activated(h_AJ: Tensor, activation: Activation, *, gated: bool) -> Tensor:
    if not gated:
        return activation(h_AJ)
    if activation in _POINTS:
        return gate(h_AJ, _POINTS[activation])
    gate_AF, value_AF = h_AJ.chunk(2, dim=-1)
    return activation(gate_AF) * value_AF


def product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would multiply in; casting all experts at once costs less than one by one."""
    device = x.device.type
    return (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and x.dtype != torch.float64 else x.dtype
    )
