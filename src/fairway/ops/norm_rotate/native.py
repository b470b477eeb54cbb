"""Heads normalised, scaled and turned by the native kernel in one pass each way, and where it cannot serve in three.

See `naive.py` for the definition. Shape key: B batch, T time, H heads, K head width, R turned width.
"""

from ctypes import c_float, c_int, c_long
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer, usable
from fairway.ops.rms_norm.native import rms_norm
from fairway.ops.rotate.native import rotate

FEWEST_NUMBERS = 8192
"""Below this size the call costs more than the kernel saves."""


def norm_rotate(
    x_BTHK: Tensor,
    gain_K: Tensor | None,
    factor_H: Tensor | None,
    cos_TR: Tensor,
    sin_TR: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """The same as `naive.norm_rotate`, in `dtype`; angles in float32."""
    if x_BTHK.dtype == dtype and cos_TR.dtype == torch.float32 and x_BTHK.numel() >= FEWEST_NUMBERS and usable(x_BTHK):
        gain, factor = (None if learned is None else learned.float() for learned in (gain_K, factor_H))
        return _forward(x_BTHK, gain, factor, cos_TR.contiguous(), sin_TR.contiguous(), eps)
    y_BTHK = rms_norm(x_BTHK, gain_K, eps, dtype)
    if factor_H is not None:
        y_BTHK = y_BTHK * factor_H[:, None].to(dtype)
    return rotate(y_BTHK, cos_TR, sin_TR)


@torch.library.custom_op("fairway::norm_rotate", mutates_args=())
def _forward(x: Tensor, gain: Tensor | None, factor: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    kernel("norm_rotate_forward")(
        pointer(x), pointer(gain), pointer(factor), pointer(cos), pointer(sin), pointer(y), _sizes(x, cos),
        c_float(eps), c_int(x.dtype == torch.bfloat16),
    )  # fmt: skip
    return y


@_forward.register_fake
def _(x: Tensor, gain: Tensor | None, factor: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("fairway::norm_rotate_backward", mutates_args=())
def _backward(
    upstream: Tensor, x: Tensor, gain: Tensor | None, factor: Tensor | None, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    blocks, (heads, width) = torch.get_num_threads(), x.shape[2:]
    upstream, x = upstream.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    dgain = torch.zeros(0 if gain is None else blocks, width)
    dfactor = torch.zeros(0 if factor is None else blocks, heads)
    kernel("norm_rotate_backward")(
        pointer(upstream), pointer(x), pointer(gain), pointer(factor), pointer(cos), pointer(sin), pointer(dx),
        pointer(None if gain is None else dgain), pointer(None if factor is None else dfactor), _sizes(x, cos),
        c_float(eps), c_long(blocks), c_int(x.dtype == torch.bfloat16),
    )  # fmt: skip
    return dx, dgain.sum(0), dfactor.sum(0)


@_backward.register_fake
def _(
    upstream: Tensor, x: Tensor, gain: Tensor | None, factor: Tensor | None, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    heads, width = x.shape[2:]
    return x.new_empty(x.shape), cos.new_empty(width), cos.new_empty(heads)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.eps = inputs[5]


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    x, gain, factor, cos, sin = ctx.saved_tensors
    dx, dgain, dfactor = _backward(upstream, x, gain, factor, cos, sin, ctx.eps)
    return dx, None if gain is None else dgain, None if factor is None else dfactor, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _sizes(x: Tensor, cos: Tensor) -> Any:
    batch, time, heads, width = x.shape
    return longs(batch * time, heads, width, time, 2 * cos.shape[-1])
