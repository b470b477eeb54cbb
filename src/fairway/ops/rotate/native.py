"""Heads turned by their position by the native kernel, and where that cannot serve by torch.

See `naive.py` for the definition. Shape key: B batch, T time, H heads, K head width, R turned width.
"""

from ctypes import c_float, c_int, c_long
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable
from fairway.ops.rotate import naive

FEWEST_NUMBERS = 8192
"""Below this size the call costs more than the kernel saves."""


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same as `naive.rotate`, with angles in float32; one pass over memory each way."""
    if x_BTHK.numel() < FEWEST_NUMBERS or not usable(x_BTHK) or cos.dtype != torch.float32:
        return naive.rotate(x_BTHK, cos, sin)
    return _rotate(x_BTHK, cos.contiguous(), sin.contiguous(), 1.0)


@torch.library.custom_op("fairway::rotate", mutates_args=())
def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    batch, time, heads, width = x.shape
    x = x.contiguous()
    y = torch.empty_like(x)
    kernel("rotate")(
        pointer(x), pointer(cos), pointer(sin), pointer(y), c_long(batch * time), c_long(heads), c_long(width),
        c_long(heads * width), c_long(cos.shape[:-1].numel()), c_long(2 * cos.shape[-1]), c_float(direction),
        c_int(x.dtype == torch.bfloat16),
    )  # fmt: skip
    return y


@_rotate.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])
    ctx.direction = inputs[3]


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
    return _rotate(upstream, *ctx.saved_tensors, -ctx.direction), None, None, None


_rotate.register_autograd(_differentiate, setup_context=_save)
