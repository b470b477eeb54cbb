"""Products that are known to be symmetric by the native kernel, which computes one triangle and mirrors it.

See `naive.py` for the definition; elsewhere torch computes the whole square. Not differentiable. Shape key: N matrices,
S side, K summed over.
"""

from ctypes import c_float, c_int, c_long

import torch
from torch import Tensor

from fairway.core.native import kernel, level, pointer, usable

FASTER_AT = ("avx512bf16",)
"""Levels at which one triangle by this kernel takes less time than the square by torch: those with dot instructions for
bfloat16, but no matrix tiles, which torch's library uses better."""


def product(a_NSK: Tensor, b_NSK: Tensor, d_NSS: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """The same as `naive.product` for symmetric results, by the faster way; `beta` only with a `d_NSS`."""
    if (
        a_NSK.dtype == torch.bfloat16
        and level() in FASTER_AT
        and usable(a_NSK, b_NSK, d_NSS)
        and not a_NSK.shape[-1] % 2
    ):
        return triangle(a_NSK, b_NSK, d_NSS, alpha, beta)
    if d_NSS is None:
        c_NSS = torch.bmm(a_NSK, b_NSK.mT)
        return c_NSS if alpha == 1.0 else c_NSS * alpha
    return torch.baddbmm(d_NSS, a_NSK, b_NSK.mT, beta=beta, alpha=alpha)


def triangle(
    a_NSK: Tensor, b_NSK: Tensor, d_NSS: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0
) -> Tensor:
    """The same as `naive.product` by the kernel: float32 or bfloat16, K even."""
    a, d = a_NSK.contiguous(), None if d_NSS is None else d_NSS.contiguous()
    b = a if b_NSK is a_NSK else b_NSK.contiguous()
    count, side, depth = a_NSK.shape
    c_NSS = a_NSK.new_empty(count, side, side)
    kernel("symmetric_product")(
        pointer(a), pointer(b), pointer(d), pointer(c_NSS), c_long(count), c_long(side), c_long(depth), c_float(alpha),
        c_float(beta), c_int(a_NSK.dtype == torch.bfloat16),
    )  # fmt: skip
    return c_NSS
