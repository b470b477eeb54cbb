"""Sparse matrices packed for the native product with one vector, from Deep Compression's codes and relative indices.

Blocks of 16 rows are computed side by side, tile by tile of 32 columns, as many steps in a tile as its fullest row has
entries; the tiles of a block stand in the order of that number, four together. Where up to 31 weights are shared, an
entry takes 16 bits, else 48. Everything is float32. See `naive.py` for the definition. Shape key: N entries, C codes,
I inputs.
"""

from ctypes import c_long, c_void_p
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairway.core.native import kernel, pointer

ROWS, TILE, TOGETHER = 16, 32, 4
MOST_CODES = 32
"""Shared weights that two registers hold, zero among them."""
Integers = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class PackedSparse:
    """A sparse matrix as the kernel reads it."""

    rows: int
    columns: int
    first: Tensor
    """Of each block its first group of tiles, and one more for the end."""
    tiles: Tensor
    """Of each group the entries of a row, and its four tiles."""
    entry: Tensor
    value: Tensor | None
    table: Tensor | None

    @cached_property
    def arguments(self) -> tuple[tuple[c_void_p, ...], tuple[c_long, c_long]]:
        """What the kernel is called with before the vectors and behind them."""
        parts = (self.first, self.tiles, self.entry, self.value, self.table)
        return tuple(pointer(part) for part in parts), (c_long(len(self.first) - 1), c_long(self.columns))

    @property
    def bytes(self) -> int:
        """Bytes that one product reads of it."""
        parts = (self.first, self.tiles, self.entry, self.value, self.table)
        return sum(0 if part is None else part.nbytes for part in parts)


def packed(gap_N: Integers, code_N: Integers, table_C: Tensor, rows: int, columns: int) -> PackedSparse:
    """A matrix from its entries, row by row, each `gap` numbers behind the last; code 0 is worth nothing."""
    place_N = np.cumsum(gap_N.astype(np.int64) + 1) - 1
    assert not len(place_N) or place_N[-1] < rows * columns, "an entry lies behind the end"
    kept = (table_C.numpy() != 0)[code_N]
    place_N, code_N = place_N[kept], code_N[kept]
    row_N, column_N = np.divmod(place_N, columns)
    width, height = -(-columns // TILE), -(-rows // ROWS)
    steps = _steps(row_N, column_N // TILE, height, width)
    steps = np.concatenate((steps, np.zeros((height, -width % TOGETHER), np.int64)), axis=1)
    order = np.argsort(-steps, axis=1, kind="stable").reshape(-1, TOGETHER)
    block = np.repeat(np.arange(height), steps.shape[1] // TOGETHER)
    counts = steps[block[:, None], order].max(1)
    used = counts > 0
    first = np.concatenate(([0], np.cumsum(used.reshape(height, -1).sum(1))))
    tiles = np.column_stack((counts, np.where(order < width, order, 0)))[used].astype(np.int32)
    entry_at = _entry_places(row_N, column_N // TILE, block[used], order[used], counts[used])
    total = int(counts.sum()) * TOGETHER * ROWS
    coded = len(table_C) <= MOST_CODES
    entry, value = np.zeros(total, np.uint16), np.zeros(0 if coded else total, np.float32)
    entry[entry_at] = column_N % TILE | ((code_N << 8) if coded else 0)
    table = torch.zeros(MOST_CODES)
    if coded:
        table[: len(table_C)] = table_C
    else:
        value[entry_at] = table_C.numpy()[code_N]
    arrays = (torch.from_numpy(first.astype(np.int32)), torch.from_numpy(tiles), torch.from_numpy(entry.view(np.int16)))
    return PackedSparse(rows, columns, *arrays, None if coded else torch.from_numpy(value), table if coded else None)


def sparse_matvec(matrix: PackedSparse, x_I: Tensor) -> Tensor:
    """`W x`, (O,), for a contiguous float32 vector."""
    assert x_I.dtype == torch.float32
    assert x_I.shape == (matrix.columns,)
    y = torch.empty(-(-matrix.rows // ROWS) * ROWS)
    before, behind = matrix.arguments
    kernel("sparse_matvec")(*before, pointer(x_I), pointer(y), *behind)
    return y if len(y) == matrix.rows else y[: matrix.rows]


def _rank(row_N: Integers, tile_N: Integers, width: int) -> Integers:
    """How many entries of its row and tile stand before each entry."""
    run_N = row_N * width + tile_N
    starts = np.flatnonzero(np.diff(run_N, prepend=-1))
    return np.arange(len(run_N)) - np.repeat(starts, np.diff(starts, append=len(run_N)))


def _steps(row_N: Integers, tile_N: Integers, height: int, width: int) -> Integers:
    """Entries of the fullest row in each tile of each block."""
    steps = np.zeros((height, width), np.int64)
    np.maximum.at(steps, (row_N // ROWS, tile_N), _rank(row_N, tile_N, width) + 1)
    return steps


def _entry_places(row_N: Integers, tile_N: Integers, block: Integers, order: Integers, counts: Integers) -> Integers:
    """Where each entry goes: by group of tiles, step, tile of the group, row."""
    begin = np.cumsum(counts) - counts
    width = int(order.max(initial=-1)) + 1
    group = np.zeros((int(block.max(initial=-1)) + 1, width), np.int64)
    lane = np.zeros_like(group)
    group[block[:, None], order] = np.arange(len(block))[:, None]
    lane[block[:, None], order] = np.arange(TOGETHER)
    at = row_N // ROWS, tile_N
    step = begin[group[at]] + _rank(row_N, tile_N, width)
    return (step * TOGETHER + lane[at]) * ROWS + row_N % ROWS
