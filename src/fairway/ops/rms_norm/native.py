"""Root-mean-square normalisation by the native kernel, and where that cannot serve by torch.

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


def rms_norm(x: Tensor, gain_D: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """The same as `naive.rms_norm`, computed in float32 at least and returned in `dtype`."""
    formats = {torch.float32, torch.bfloat16}
    if x.device.type != "cpu" or not {x.dtype, dtype} <= formats or x.numel() < FEWEST_NUMBERS or level() is None:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        gain = None if gain_D is None else gain_D.to(wide.dtype)
        return functional.rms_norm(wide, (x.shape[-1],), gain, eps).to(dtype)
    y, _ = _forward(x.contiguous(), None if gain_D is None else gain_D.float(), eps, dtype == torch.bfloat16)
    return y


@torch.library.custom_op("fairway::rms_norm", mutates_args=())
def _forward(x: Tensor, gain: Tensor | None, eps: float, half_out: bool) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    y = torch.empty(x.shape, dtype=torch.bfloat16 if half_out else torch.float32)
    inverse_N = torch.empty(x.numel() // width)
    kernel("rms_norm_forward")(
        pointer(x), pointer(gain), pointer(y), pointer(inverse_N), c_long(len(inverse_N)), c_long(width), c_float(eps),
        c_int(x.dtype == torch.bfloat16), c_int(half_out),
    )  # fmt: skip
    return y, inverse_N


@_forward.register_fake
def _(x: Tensor, gain: Tensor | None, eps: float, half_out: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.bfloat16 if half_out else torch.float32
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


@torch.library.custom_op("fairway::rms_norm_backward", mutates_args=())
def _backward(upstream: Tensor, x: Tensor, gain: Tensor | None, inverse_N: Tensor) -> tuple[Tensor, Tensor]:
    rows, width, blocks = len(inverse_N), x.shape[-1], torch.get_num_threads()
    upstream = upstream.contiguous()
    dx = torch.empty_like(x)
    dgain = torch.zeros(blocks if gain is not None else 0, width)
    kernel("rms_norm_backward")(
        pointer(upstream), pointer(x), pointer(gain), pointer(inverse_N), pointer(dx),
        pointer(None if gain is None else dgain), c_long(rows), c_long(width), c_long(blocks),
        c_int(x.dtype == torch.bfloat16), c_int(upstream.dtype == torch.bfloat16),
    )  # fmt: skip
    return dx, dgain.sum(0)


@_backward.register_fake
def _(upstream: Tensor, x: Tensor, gain: Tensor | None, inverse_N: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[-1], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor | None, float, bool], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _differentiate(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, gain, inverse_N = ctx.saved_tensors
    dx, dgain = _backward(upstream, x, gain, inverse_N)
    return dx, None if gain is None else dgain, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
