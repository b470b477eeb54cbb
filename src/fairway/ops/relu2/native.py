"""The squared ReLU by the native kernel, and where that cannot serve by torch.

See `naive.py` for the definition.
"""

from ctypes import c_int, c_long
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable
from fairway.ops.relu2 import naive

FEWEST_NUMBERS = 8192
"""Below this size the call costs more than the kernel saves."""


def relu2(x: Tensor) -> Tensor:
    """The same as `naive.relu2`, one pass over memory each way."""
    return _forward(x.contiguous()) if x.numel() >= FEWEST_NUMBERS and usable(x) else naive.relu2(x)


@torch.library.custom_op("fairway::relu2", mutates_args=())
def _forward(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    kernel("relu2_forward")(pointer(x), pointer(y), c_long(x.numel()), c_int(x.dtype == torch.bfloat16))
    return y


@_forward.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fairway::relu2_backward", mutates_args=())
def _backward(upstream: Tensor, x: Tensor) -> Tensor:
    dx, upstream = torch.empty_like(x), upstream.contiguous()
    half = c_int(x.dtype == torch.bfloat16)
    kernel("relu2_backward")(pointer(upstream), pointer(x), pointer(dx), c_long(x.numel()), half)
    return dx


@_backward.register_fake
def _(upstream: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _differentiate(ctx: Any, upstream: Tensor) -> Tensor:
    return _backward(upstream, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_save)
