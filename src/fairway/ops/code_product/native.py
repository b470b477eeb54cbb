"""Many vectors times a packed matrix by the native kernel, rounded less than a float32 product. Not differentiable.

See `naive.py` for the definition and `ops/matvec` for the packing. Shape key: O outputs, I inputs.
"""

from ctypes import c_long

import torch
from torch import Tensor

from fairway.core.native import kernel, level, pointer
from fairway.ops.matvec.native import INT8, PackedMatrix

_BYTES_ARE_FAST = ("avx512bf16", "amx")
"""Levels with instructions for products of bytes. By them a product takes three quarters of the time of one of floats;
elsewhere it takes longer."""


def worthwhile() -> bool:
    """Whether the kernel is faster here than a product of floats."""
    return level() in _BYTES_ARE_FAST


def code_product(matrix: PackedMatrix, x: Tensor) -> Tensor:
    """`x W^T`, (..., O), for float32 vectors (..., I) and a matrix of bytes.

    Vectors are rounded to 24 bits of their largest magnitude and sums are exact, whatever their order.
    """
    assert matrix.format == INT8
    assert x.dtype == torch.float32
    assert x.shape[-1] == matrix.columns
    x = x.contiguous()
    y = torch.empty(*x.shape[:-1], matrix.rows)
    kernel("code_product")(
        pointer(matrix.data), pointer(matrix.step_O), pointer(x), pointer(y), c_long(x.numel() // matrix.columns),
        c_long(matrix.rows), c_long(matrix.columns),
    )  # fmt: skip
    return y
