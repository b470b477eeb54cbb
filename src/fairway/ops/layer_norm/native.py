"""Layer normalisation by the native kernel, and where that cannot serve by torch.

See `naive.py` for the definition. Shape key: N rows, D width.
"""

from ctypes import c_float, c_int, c_long
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.native import kernel, level, pointer

FEWEST_NUMBERS = 8192
"""Below this size the call costs more than the kernel saves."""


def layer_norm(x: Tensor, gain_D: Tensor | None, bias_D: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """The same as `naive.layer_norm`, computed in float32 at least and returned in `dtype`."""
    formats = {torch.float32, torch.bfloat16}
    if x.device.type != "cpu" or not {x.dtype, dtype} <= formats or x.numel() < FEWEST_NUMBERS or level() is None:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        gain, bias = (None if learned is None else learned.to(wide.dtype) for learned in (gain_D, bias_D))
        return functional.layer_norm(wide, (x.shape[-1],), gain, bias, eps).to(dtype)
    gain, bias = (None if learned is None else learned.float() for learned in (gain_D, bias_D))
    y, _ = _forward(x.contiguous(), gain, bias, eps, dtype == torch.bfloat16)
    return y


@torch.library.custom_op("fairway::layer_norm", mutates_args=())
def _forward(x: Tensor, gain: Tensor | None, bias: Tensor | None, eps: float, half_out: bool) -> tuple[Tensor, Tensor]:
    """The norm, and each row's mean and inverse deviation."""
    width = x.shape[-1]
    y = torch.empty(x.shape, dtype=torch.bfloat16 if half_out else torch.float32)
    moments_N2 = torch.empty(x.numel() // width, 2)
    kernel("layer_norm_forward")(
        pointer(x), pointer(gain), pointer(bias), pointer(y), pointer(moments_N2), c_long(len(moments_N2)),
        c_long(width), c_float(eps), c_int(x.dtype == torch.bfloat16), c_int(half_out),
    )  # fmt: skip
    return y, moments_N2


@_forward.register_fake
def _(x: Tensor, gain: Tensor | None, bias: Tensor | None, eps: float, half_out: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.bfloat16 if half_out else torch.float32
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.numel() // x.shape[-1], 2, dtype=torch.float32)


@torch.library.custom_op("fairway::layer_norm_backward", mutates_args=())
def _backward(
    upstream: Tensor, x: Tensor, gain: Tensor | None, moments_N2: Tensor, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width, blocks = len(moments_N2), x.shape[-1], torch.get_num_threads()
    upstream = upstream.contiguous()
    dx = torch.empty_like(x)
    dgain = torch.zeros(blocks if gain is not None else 0, width)
    dbias = torch.zeros(blocks if biased else 0, width)
    kernel("layer_norm_backward")(
        pointer(upstream), pointer(x), pointer(gain), pointer(moments_N2), pointer(dx),
        pointer(None if gain is None else dgain), pointer(dbias if biased else None), c_long(rows), c_long(width),
        c_long(blocks), c_int(x.dtype == torch.bfloat16), c_int(upstream.dtype == torch.bfloat16),
    )  # fmt: skip
    return dx, dgain.sum(0), dbias.sum(0)


@_backward.register_fake
def _(
    upstream: Tensor, x: Tensor, gain: Tensor | None, moments_N2: Tensor, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dgain, dbias = (x.new_empty(x.shape[-1], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), dgain, dbias


def _save(
    ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor | None, float, bool], output: tuple[Tensor, Tensor]
) -> None:
    ctx.biased = inputs[2] is not None
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _differentiate(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, gain, moments_N2 = ctx.saved_tensors
    dx, dgain, dbias = _backward(upstream, x, gain, moments_N2, ctx.biased)
    return dx, None if gain is None else dgain, dbias if ctx.biased else None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
