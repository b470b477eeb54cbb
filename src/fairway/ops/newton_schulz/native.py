"""Newton-Schulz iterations by the native kernel: a matrix is packed once and stays in the cache for all steps.

See `naive.py` for the definition. Most squares that the iterations multiply are symmetric, and the kernel computes
one triangle of them; it keeps the diagonals apart in float32, which are most of them. Not differentiable.
Shape key: N matrices, R rows, C columns.
"""

from collections.abc import Sequence
from ctypes import c_int, c_long

import torch
from torch import Tensor

from fairway.core.native import floats, kernel, level, longs, pointer, usable
from fairway.ops.newton_schulz.naive import Coefficients

FASTER_AT = ("avx512bf16",)
"""Levels at which the kernel takes less time than torch's products in bfloat16: those with dot instructions for it, but
no matrix tiles, which torch's library uses better."""


def served(x_NRC: Tensor) -> bool:
    """Whether the kernel takes these matrices and is the faster way."""
    return level() in FASTER_AT and x_NRC.dtype == torch.bfloat16 and usable(x_NRC) and x_NRC.is_contiguous()


def iterate(x_NRC: Tensor, steps: Sequence[Coefficients], periods: Sequence[int]) -> Tensor:
    """The same as `naive.iterate`, float32 or bfloat16, in place; `periods` as in `fairway.optim.orthogonal`."""
    assert x_NRC.is_contiguous()
    assert sum(periods) == len(steps)
    kernel("newton_schulz")(
        pointer(x_NRC), *(c_long(size) for size in x_NRC.shape), floats(*(value for step in steps for value in step)),
        longs(*periods), c_long(len(periods)), c_int(x_NRC.dtype == torch.bfloat16),
    )  # fmt: skip
    return x_NRC
