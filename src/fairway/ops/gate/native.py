"""A gate by the native kernel, and where that cannot serve by torch.

One pass over memory each way, both halves read and both gradients written in place. See `naive.py` for the definition.
Shape key: F features after the gate.
"""

from ctypes import c_int, c_long
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable
from fairway.ops.gate import naive
from fairway.ops.gate.naive import Point

_ORDER: tuple[Point, ...] = ("identity", "sigmoid", "relu", "silu", "gelu", "gelu_tanh")


def gate(x_2F: Tensor, point: Point) -> Tensor:
    """The same as `naive.gate`; bfloat16 is computed in float32 and rounded once."""
    return _forward(x_2F.contiguous(), _ORDER.index(point)) if usable(x_2F) else naive.gate(x_2F, point)


@torch.library.custom_op("fairway::gate", mutates_args=())
def _forward(x: Tensor, point: int) -> Tensor:
    width = x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], width)
    half = c_int(x.dtype == torch.bfloat16)
    kernel("gate_forward")(pointer(x), pointer(y), c_long(_rows(x)), c_long(width), c_int(point), half)
    return y


@_forward.register_fake
def _(x: Tensor, point: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.custom_op("fairway::gate_backward", mutates_args=())
def _backward(upstream: Tensor, x: Tensor, point: int) -> Tensor:
    dx, upstream, half = torch.empty_like(x), upstream.contiguous(), c_int(x.dtype == torch.bfloat16)
    width = c_long(x.shape[-1] // 2)
    kernel("gate_backward")(
        pointer(upstream), pointer(x), pointer(dx), c_long(_rows(x)), width, c_int(point), half
    )  # fmt: skip
    return dx


@_backward.register_fake
def _(upstream: Tensor, x: Tensor, point: int) -> Tensor:
    return torch.empty_like(x)


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def _save(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.point = inputs[1]


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
    return _backward(upstream, *ctx.saved_tensors, ctx.point), None


_forward.register_autograd(_differentiate, setup_context=_save)
