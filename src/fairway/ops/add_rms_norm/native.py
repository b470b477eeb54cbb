"""A branch added to the residual stream, and the norm of the sum, by the native kernel; where it cannot serve, apart.

See `naive.py` for the definition. Shape key: N rows, D width.
"""

from ctypes import c_float, c_int, c_long
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, level, pointer
from fairway.ops.rms_norm.native import rms_norm

FEWEST_NUMBERS = 8192
"""Below this size the call costs more than the kernel saves."""


def add_rms_norm(
    x: Tensor, branch: Tensor, gain_D: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same as `naive.add_rms_norm`: the sum in the dtype of `x + branch`, its norm in `dtype`."""
    if not _serves(x, branch, dtype):
        total = x + branch
        return total, rms_norm(total, gain_D, eps, dtype)
    gain = None if gain_D is None else gain_D.float()
    total, y, _ = _forward(x, branch, gain, eps, dtype == torch.bfloat16)
    return total, y


def _serves(x: Tensor, branch: Tensor, dtype: torch.dtype) -> bool:
    on_cpu = x.device.type == branch.device.type == "cpu"
    kinds = (x.dtype, branch.dtype, dtype)
    known = set(kinds) <= {torch.float32, torch.bfloat16} and (x.dtype == torch.float32 or len(set(kinds)) == 1)
    return on_cpu and known and x.shape == branch.shape and x.numel() >= FEWEST_NUMBERS and level() is not None


@torch.library.custom_op("fairway::add_rms_norm", mutates_args=())
def _forward(
    x: Tensor, branch: Tensor, gain: Tensor | None, eps: float, half_out: bool
) -> tuple[Tensor, Tensor, Tensor]:
    width = x.shape[-1]
    x, branch = x.contiguous(), branch.contiguous()
    total, y = torch.empty_like(x), torch.empty(x.shape, dtype=_dtype(half_out))
    inverse_N = torch.empty(x.numel() // max(1, width))
    kernel("add_rms_norm_forward")(
        pointer(x), pointer(branch), pointer(gain), pointer(total), pointer(y), pointer(inverse_N),
        c_long(len(inverse_N)), c_long(width), c_float(eps), *_halves(x, branch, y),
    )  # fmt: skip
    return total, y, inverse_N


@_forward.register_fake
def _(x: Tensor, branch: Tensor, gain: Tensor | None, eps: float, half_out: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.numel() // max(1, x.shape[-1])
    return (
        x.new_empty(x.shape), x.new_empty(x.shape, dtype=_dtype(half_out)), x.new_empty(rows, dtype=torch.float32),
    )  # fmt: skip


@torch.library.custom_op("fairway::add_rms_norm_backward", mutates_args=())
def _backward(
    up: Tensor, upstream: Tensor, total: Tensor, gain: Tensor | None, inverse_N: Tensor, half_branch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the stream, by a branch of another dtype (else empty), and by the gain."""
    rows, width, blocks = len(inverse_N), total.shape[-1], torch.get_num_threads()
    up, upstream = up.contiguous(), upstream.contiguous()
    dx = torch.empty_like(total)
    dbranch = torch.empty(total.shape if half_branch else 0, dtype=_dtype(half_branch))
    dgain = torch.zeros(blocks if gain is not None else 0, width)
    kernel("add_rms_norm_backward")(
        pointer(up), pointer(upstream), pointer(total), pointer(gain), pointer(inverse_N), pointer(dx),
        pointer(dbranch if half_branch else None), pointer(None if gain is None else dgain), c_long(rows),
        c_long(width), c_long(blocks), *_halves(total, dbranch, upstream),
    )  # fmt: skip
    return dx, dbranch, dgain.sum(0)


@_backward.register_fake
def _(
    up: Tensor, upstream: Tensor, total: Tensor, gain: Tensor | None, inverse_N: Tensor, half_branch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dbranch = total.new_empty(total.shape if half_branch else 0, dtype=_dtype(half_branch))
    return torch.empty_like(total), dbranch, total.new_empty(total.shape[-1], dtype=torch.float32)


def _save(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, float, bool], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, branch, gain, _, _ = inputs
    ctx.half_branch = branch.dtype != x.dtype
    ctx.save_for_backward(output[0], gain, output[2])


def _differentiate(ctx: Any, up: Tensor, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    total, gain, inverse_N = ctx.saved_tensors
    dx, dbranch, dgain = _backward(up, upstream, total, gain, inverse_N, ctx.half_branch)
    return dx, dbranch if ctx.half_branch else dx, None if gain is None else dgain, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _dtype(half: bool) -> torch.dtype:
    return torch.bfloat16 if half else torch.float32


def _halves(*tensors: Tensor) -> list[c_int]:
    return [c_int(tensor.dtype == torch.bfloat16) for tensor in tensors]
