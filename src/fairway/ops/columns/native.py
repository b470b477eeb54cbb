"""Fixing the columns of a block by the native kernel, and where that cannot serve by torch.

See `naive.py` for the definition. Without the kernel columns wait in two levels: within 16 they are updated one by one,
behind them by matrix products. Shape key: B columns of the block, R rows of the weight.
"""

from ctypes import c_long

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable
from fairway.ops.columns import naive

_INNER = 16
_LARGEST_GROUP = 16


def solve(
    work_BR: Tensor, kept_BR: Tensor, upper_BB: Tensor, step_R: Tensor | None, pattern: tuple[int, int] | None
) -> Tensor:
    """The same as `naive.solve`, for a block of any size; `work_BR` and `kept_BR` are contiguous."""
    native = usable(work_BR, upper_BB, step_R) and work_BR.dtype == torch.float32
    if not native or (pattern is not None and pattern[1] > _LARGEST_GROUP):
        return _by_products(work_BR, kept_BR, upper_BB, step_R, pattern)
    errors_BR, upper_BB = torch.empty_like(work_BR), upper_BB.contiguous()
    zeros, group = pattern or (0, 1)
    kernel("columns_solve")(
        *map(pointer, (work_BR, kept_BR, upper_BB, step_R, errors_BR)),
        *map(c_long, (*work_BR.shape, zeros, group)),
    )
    return errors_BR


def _by_products(
    work_BR: Tensor, kept_BR: Tensor, upper_BB: Tensor, step_R: Tensor | None, pattern: tuple[int, int] | None
) -> Tensor:
    inner = _INNER if pattern is None else pattern[1] * max(1, _INNER // pattern[1])
    errors_BR = torch.empty_like(work_BR)
    for first in range(0, len(work_BR), inner):
        here, behind = slice(first, first + inner), slice(first + inner, None)
        errors_BR[here] = naive.solve(work_BR[here], kept_BR[here], upper_BB[here, here], step_R, pattern)
        work_BR[behind].addmm_(upper_BB[here, behind].T, errors_BR[here], alpha=-1)
    return errors_BR
