"""Sparse matrices packed for the native product with one vector, from Deep Compression's codes and relative indices.

Blocks of 16 rows are computed side by side, tile by tile of 32 columns, four tiles together with as many steps for each
as pay: what a row holds beyond these stands in a list behind the tiles. Where up to 31 weights are shared, an entry of
a tile takes 16 bits, else 48; two tiles' entries stand in turn. All is float32. See `naive.py` for the definition.
Shape key: N entries, C codes, I inputs.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer

ROWS, TILE, TOGETHER = 16, 32, 4
MOST_CODES = 32
"""Shared weights that two registers hold, zero among them."""
LISTED, SWITCH = 0.85, 1.0
"""What an entry of the list costs, and another number of steps than that of the tiles before, in steps of one tile."""
REST = np.dtype([("place", "<u4"), ("value", "<f4")])
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
    rest: Tensor
    """Place and value of what stands in no tile, 8 bytes each; a place is a row above the bits of a column."""

    @cached_property
    def description(self) -> Any:
        """What the kernel is called with before the vectors."""
        places = (0 if part is None else part.data_ptr() for part in self._parts)
        return longs(*places, len(self.first) - 1, self.columns, _bits(self.columns), len(self.rest) // REST.itemsize)

    @cached_property
    def padded_rows(self) -> int:
        """Rows of whole blocks."""
        return -(-self.rows // ROWS) * ROWS

    @property
    def bytes(self) -> int:
        """Bytes that one product reads of it."""
        return sum(0 if part is None else part.nbytes for part in self._parts)

    @property
    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.first, self.tiles, self.entry, self.value, self.table, self.rest


def packed(gap_N: Integers, code_N: Integers, table_C: Tensor, rows: int, columns: int) -> PackedSparse:
    """A matrix from its entries, row by row, each `gap` numbers behind the last; code 0 is worth nothing."""
    place_N = np.cumsum(gap_N.astype(np.int64) + 1) - 1
    assert not len(place_N) or place_N[-1] < rows * columns, "an entry lies behind the end"
    assert (rows - 1) << _bits(columns) < 1 << 32, "a matrix is too large"
    kept = (table_C.numpy() != 0)[code_N]
    place_N, code_N = place_N[kept], code_N[kept]
    row_N, column_N = np.divmod(place_N, columns)
    tile_N, block_N = column_N // TILE, row_N // ROWS
    width, height = -(-columns // TILE), -(-rows // ROWS)
    rank_N = _rank(row_N, tile_N, width)
    order, counts = _grouped(block_N, tile_N, rank_N, height, width)
    used = counts > 0
    first = np.concatenate(([0], np.cumsum(used.sum(1)))).astype(np.int32)
    tiles = np.column_stack((counts[used], np.where(order < width, order, 0)[used])).astype(np.int32)
    held_N, entry_at = _entry_places(row_N, block_N, tile_N, rank_N, order, counts)
    total = int(counts.sum()) * TOGETHER * ROWS
    coded = len(table_C) <= MOST_CODES
    entry, value = np.zeros(total, np.uint16), np.zeros(0 if coded else total, np.float32)
    entry[_paired(entry_at)] = (column_N % TILE | ((code_N << 8) if coded else 0))[held_N]
    table = torch.zeros(MOST_CODES)
    if coded:
        table[: len(table_C)] = table_C
    else:
        value[entry_at] = table_C.numpy()[code_N[held_N]]
    rest = _listed(row_N[~held_N], column_N[~held_N], table_C.numpy()[code_N[~held_N]], columns)
    return PackedSparse(
        rows, columns, torch.from_numpy(first), torch.from_numpy(tiles), _at_a_line(entry.view(np.int16)),
        None if coded else _at_a_line(value), table if coded else None, torch.from_numpy(rest.view(np.uint8)),
    )  # fmt: skip


def sparse_matvec(matrix: PackedSparse, x_I: Tensor) -> Tensor:
    """`W x`, (O,), for a contiguous float32 vector."""
    assert x_I.dtype == torch.float32
    assert x_I.shape == (matrix.columns,)
    y = torch.empty(matrix.padded_rows)
    kernel("sparse_matvec")(matrix.description, pointer(x_I), pointer(y))
    return y if matrix.padded_rows == matrix.rows else y[: matrix.rows]


def _rank(row_N: Integers, tile_N: Integers, width: int) -> Integers:
    """How many entries of its row and tile stand before each entry."""
    run_N = row_N * width + tile_N
    starts = np.flatnonzero(np.diff(run_N, prepend=-1))
    return np.arange(len(run_N)) - np.repeat(starts, np.diff(starts, append=len(run_N)))


def _grouped(
    block_N: Integers, tile_N: Integers, rank_N: Integers, height: int, width: int
) -> tuple[Integers, Integers]:
    """Of each block its tiles, four in a group, those with like numbers of entries together, and each group's steps."""
    most = int(rank_N.max(initial=-1)) + 1
    beyond = np.zeros((height, -(-width // TOGETHER) * TOGETHER, most + 1), np.int64)
    np.add.at(beyond, (block_N, tile_N, rank_N), 1)
    beyond = np.flip(np.cumsum(np.flip(beyond, 2), 2), 2)  # entries that no step holds, by the number of steps
    order = np.argsort(-beyond[:, :, 0], axis=1, kind="stable")
    beyond = np.take_along_axis(beyond, order[:, :, None], 1).reshape(height, -1, TOGETHER, most + 1).sum(2)
    cost = TOGETHER * np.arange(most + 1) + LISTED * beyond
    usual = cost.sum((0, 1)).argmin()
    best = cost.argmin(2)
    counts = np.where(cost.min(2) < cost[:, :, usual] - SWITCH, best, np.where(beyond[:, :, 0] > 0, usual, 0))
    return order.reshape(height, -1, TOGETHER), counts


def _paired(place_N: Integers) -> Integers:
    """Places where the rows of every two tiles are woven into one another."""
    pair_N, inside_N = np.divmod(place_N, 2 * ROWS)
    return pair_N * 2 * ROWS + inside_N % ROWS * 2 + inside_N // ROWS


def _entry_places(
    row_N: Integers, block_N: Integers, tile_N: Integers, rank_N: Integers, order: Integers, counts: Integers
) -> tuple[Integers, Integers]:
    """Which entries stand in tiles, and where these go: by group of tiles, step, tile of the group, row."""
    place = np.argsort(order.reshape(len(order), -1), axis=1)[block_N, tile_N]
    group_N, lane_N = block_N * counts.shape[1] + place // TOGETHER, place % TOGETHER
    begin, steps = np.cumsum(counts) - counts.reshape(-1), counts.reshape(-1)
    at_N = ((begin[group_N] + rank_N) * TOGETHER + lane_N) * ROWS + row_N % ROWS
    held_N = rank_N < steps[group_N]
    return held_N, at_N[held_N]


def _listed(row_N: Integers, column_N: Integers, value_N: Integers, columns: int) -> Integers:
    """The entries one row after another, again and again: a row's sum need not wait for itself."""
    rest = np.empty(len(row_N), REST)
    order = np.lexsort((row_N, _rank(row_N, row_N * 0, 1)))
    rest["place"], rest["value"] = (row_N << _bits(columns) | column_N)[order], value_N[order]
    return rest


def _bits(columns: int) -> int:
    """Bits of a column's number."""
    return (columns - 1).bit_length()


def _at_a_line(array: Integers) -> Tensor:
    """A copy that begins where a cache line does, as PyTorch's memory does and numpy's does not."""
    return torch.from_numpy(array).clone()
