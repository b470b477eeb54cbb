"""Matrices packed for the native product with one vector: 4, 8 or 16 bits and a step for each row, or floats.

`kernel/matvec.h` says how they lie in memory and what is rounded; `naive.py` is the definition. Shape key: O outputs,
I inputs, N blocks of R = 16 outputs, G groups of C inputs, P bytes of a code.
"""

from ctypes import c_long, c_void_p
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.native import kernel, pointer

FLOAT, INT4, INT8, INT16 = range(4)
"""Formats, as the kernel names them."""
BLOCK, PANEL = 16, 4
"""Rows of a block, and blocks of a panel."""
MOST_COLUMNS = 32_768
"""More columns could overflow the sums of 32 bits."""
BITS = {INT4: 4, INT8: 8, INT16: 16}
_RANGES = {INT4: (-8, 7), INT8: (-128, 127), INT16: (-32_640, 32_639)}


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix as the kernel reads it."""

    rows: int
    columns: int
    format: int
    data: Tensor
    """Bytes."""
    step_O: Tensor | None
    """Padded to whole blocks; None for floats."""

    @cached_property
    def arguments(self) -> tuple[tuple[c_void_p, c_void_p], tuple[c_long, ...]]:
        """What the kernel is called with before the vectors and behind them."""
        sizes = (c_long(self.rows), c_long(self.columns), c_long(self.format))
        return (pointer(self.data), pointer(self.step_O)), sizes


def codes_of(weight_OI: Tensor, step_O: Tensor) -> Tensor | None:
    """The integers q of at most 16 bits with `weight == step * q` exactly in float32; None where there are none."""
    if not weight_OI.numel() or weight_OI.shape[1] > MOST_COLUMNS or not bool((step_O > 0).all()):
        return None
    code_OI = (weight_OI / step_O[:, None]).round()
    low, high = _RANGES[INT16]
    exact = bool((code_OI * step_O[:, None] == weight_OI).all())
    return code_OI.to(torch.int32) if exact and low <= code_OI.min() and code_OI.max() <= high else None


def packed(weight_OI: Tensor, step_O: Tensor | None = None, fewest_bits: int = 4) -> PackedMatrix:
    """A float32 matrix, as integers of `fewest_bits` or more where its rows are exact multiples of the steps."""
    (rows, columns), code_OI = weight_OI.shape, None if step_O is None else codes_of(weight_OI, step_O)
    if code_OI is None or step_O is None:
        value_OI = _padded(weight_OI.float(), 0, BLOCK)
        data = _laid_out(value_OI.view(-1, BLOCK, weight_OI.shape[1], 1, 1)).view(torch.uint8)
        return PackedMatrix(rows, columns, FLOAT, data, None)
    least, most = int(code_OI.min()), int(code_OI.max())
    kind = next(
        kind for kind, (low, high) in _RANGES.items() if low <= least and most <= high and BITS[kind] >= fewest_bits
    )
    return PackedMatrix(rows, columns, kind, _packed_codes(code_OI, kind), _padded(step_O.float(), 0, BLOCK))


def matvec(matrix: PackedMatrix, x_I: Tensor) -> Tensor:
    """`W x`, (O,), for a contiguous float32 vector."""
    assert x_I.dtype == torch.float32
    assert x_I.shape == (matrix.columns,)
    y = torch.empty(-(-matrix.rows // BLOCK) * BLOCK)
    before, behind = matrix.arguments
    kernel("matvec")(*before, pointer(x_I), pointer(y), *behind)
    return y if len(y) == matrix.rows else y[: matrix.rows]


def _packed_codes(code_OI: Tensor, kind: int) -> Tensor:
    code_OI = _padded(_padded(code_OI, 0, BLOCK), 1, 8 if kind == INT4 else 4)
    code_NRG4 = code_OI.view(-1, BLOCK, code_OI.shape[1] // 4, 4)
    if kind == INT4:
        byte_NRGP4 = ((code_NRG4[:, :, 0::2] + 8) | (code_NRG4[:, :, 1::2] + 8) << 4)[:, :, :, None]
    elif kind == INT8:
        byte_NRGP4 = (code_NRG4 + 128)[:, :, :, None]
    else:
        low_NRG4 = (code_NRG4 + 128) % 256 - 128
        byte_NRGP4 = torch.stack((low_NRG4, (code_NRG4 - low_NRG4) // 256), dim=3) + 128
    return _laid_out(byte_NRGP4.to(torch.uint8))


def _laid_out(value_NRGPC: Tensor) -> Tensor:
    """Blocks of rows in panels, as one flat tensor: column groups, blocks, planes, rows, columns."""
    return torch.cat([panel.permute(2, 0, 3, 1, 4).reshape(-1) for panel in value_NRGPC.split(PANEL)])


def _padded(tensor: Tensor, dimension: int, multiple: int) -> Tensor:
    missing = -tensor.shape[dimension] % multiple
    return functional.pad(tensor, (0, 0) * (tensor.ndim - 1 - dimension) + (0, missing))
