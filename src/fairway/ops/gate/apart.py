"""A gate whose halves lie apart, by the native kernel, and where that cannot serve by torch.

One pass over memory each way; halves are read where they lie, also in a part of a wider tensor. See `naive.py` for the
definition. Shape key: F features.
"""

from ctypes import c_int
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer, usable
from fairway.ops.gate import naive
from fairway.ops.gate.naive import POINTS, Point

FEWEST_NUMBERS = 8192
"""From here on the kernel is faster than torch."""
_ORDER: tuple[Point, ...] = tuple(POINTS)


def gate_apart(gate_F: Tensor, other_F: Tensor, point: Point) -> Tensor:
    """The same as `naive.gate_apart`; bfloat16 is computed in float32 and rounded once."""
    if gate_F.numel() < FEWEST_NUMBERS or gate_F.shape != other_F.shape or not usable(gate_F, other_F):
        return naive.gate_apart(gate_F, other_F, point)
    return _forward(gate_F, other_F, _ORDER.index(point))


@torch.library.custom_op("fairway::gate_apart", mutates_args=())
def _forward(gate: Tensor, other: Tensor, point: int) -> Tensor:
    y, gate, other = gate.new_empty(gate.shape), _in_rows(gate), _in_rows(other)
    kernel("gate_apart_forward")(*map(pointer, (gate, other, y)), *_settings(gate, other, point))
    return y


@_forward.register_fake
def _(gate: Tensor, other: Tensor, point: int) -> Tensor:  # noqa: ARG001
    return gate.new_empty(gate.shape)


@torch.library.custom_op("fairway::gate_apart_backward", mutates_args=())
def _backward(upstream: Tensor, gate: Tensor, other: Tensor, point: int) -> tuple[Tensor, Tensor]:
    by_gate, by_other = gate.new_empty(gate.shape), other.new_empty(other.shape)
    upstream, gate, other = upstream.contiguous(), _in_rows(gate), _in_rows(other)
    tensors = (upstream, gate, other, by_gate, by_other)
    kernel("gate_apart_backward")(*map(pointer, tensors), *_settings(gate, other, point))
    return by_gate, by_other


@_backward.register_fake
def _(upstream: Tensor, gate: Tensor, other: Tensor, point: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return gate.new_empty(gate.shape), other.new_empty(other.shape)


def _in_rows(x: Tensor) -> Tensor:
    """Rows of consecutive numbers, all as far apart; a copy only where x does not lie so."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _settings(gate: Tensor, other: Tensor, point: int) -> tuple[Any, c_int, c_int]:
    sizes = longs(*gate.shape, gate.stride(0), other.stride(0))
    return sizes, c_int(point), c_int(gate.dtype == torch.bfloat16)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:  # noqa: ARG001
    *tensors, ctx.point = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_backward(upstream, *ctx.saved_tensors, ctx.point), None


_forward.register_autograd(_differentiate, setup_context=_save)
