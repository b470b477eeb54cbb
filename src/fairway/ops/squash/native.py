"""A point function in the place of a norm by the native kernel, and where that cannot serve by torch.

One pass over memory each way; the function is computed again for the gradients. See `naive.py` for the definition.
Shape key: D width, S shares of the sums over rows.
"""

from ctypes import c_float, c_int, c_long
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, level, pointer
from fairway.ops.squash import naive
from fairway.ops.squash.naive import Point


def squash(
    x: Tensor, alpha: Tensor, shift: Tensor | None, gain_D: Tensor | None, bias_D: Tensor | None, point: Point
) -> Tensor:
    """The same as `naive.squash`, computed in float32 at least and returned in the dtype of `x`."""
    learned = (shift, gain_D, bias_D)
    if level() is None or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        rest = (None if part is None else part.to(wide.dtype) for part in learned)
        return naive.squash(wide, alpha.to(wide.dtype), *rest, point=point).to(x.dtype)
    rest = (None if part is None else part.float().contiguous() for part in learned)
    return _forward(x.contiguous(), alpha.float(), *rest, point == "erf")


@torch.library.custom_op("fairway::squash", mutates_args=())
def _forward(
    x: Tensor, alpha: Tensor, shift: Tensor | None, gain: Tensor | None, bias: Tensor | None, error_function: bool
) -> Tensor:
    y = torch.empty_like(x)
    kernel("squash_forward")(
        pointer(x), pointer(gain), pointer(bias), pointer(y), *_description(x, alpha, shift, error_function)
    )  # fmt: skip
    return y


@_forward.register_fake
def _(
    x: Tensor, alpha: Tensor, shift: Tensor | None, gain: Tensor | None, bias: Tensor | None, error_function: bool
) -> Tensor:  # fmt: skip
    return torch.empty_like(x)


@torch.library.custom_op("fairway::squash_backward", mutates_args=())
def _backward(
    upstream: Tensor, x: Tensor, alpha: Tensor, shift: Tensor | None, gain: Tensor | None, error_function: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, (alpha, shift), and gain and bias, (2, D)."""
    dx, upstream, width, shares = torch.empty_like(x), upstream.contiguous(), x.shape[-1], torch.get_num_threads()
    inner_S2, outer_2SD = torch.empty(shares, 2), torch.zeros(2, shares, width)
    kernel("squash_backward")(
        pointer(upstream), pointer(x), pointer(gain), pointer(dx), pointer(inner_S2), pointer(outer_2SD[0]),
        pointer(outer_2SD[1]), c_long(shares), *_description(x, alpha, shift, error_function),
    )  # fmt: skip
    return dx, inner_S2.sum(0), outer_2SD.sum(1)


@_backward.register_fake
def _(
    upstream: Tensor, x: Tensor, alpha: Tensor, shift: Tensor | None, gain: Tensor | None, error_function: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), alpha.new_empty(2), alpha.new_empty(2, x.shape[-1])


def _description(x: Tensor, alpha: Tensor, shift: Tensor | None, error_function: bool) -> tuple[object, ...]:
    width = x.shape[-1]
    inner = (c_float(alpha.item()), c_float(0.0 if shift is None else shift.item()))
    return c_long(x.numel() // width), c_long(width), *inner, c_int(error_function), c_int(x.dtype == torch.bfloat16)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, alpha, shift, gain, ctx.bias, ctx.error_function = (*inputs[:4], inputs[4] is not None, inputs[5])
    ctx.save_for_backward(x, alpha, shift, gain)


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    x, alpha, shift, gain = ctx.saved_tensors
    dx, inner, (dgain, dbias) = _backward(upstream, x, alpha, shift, gain, ctx.error_function)
    dshift = None if shift is None else inner[1].view(shift.shape)
    return dx, inner[0].view(alpha.shape), dshift, None if gain is None else dgain, dbias if ctx.bias else None, None


_forward.register_autograd(_differentiate, setup_context=_save)
