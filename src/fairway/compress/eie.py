"""EIE in software: a sparse matrix times a sparse vector on N processing elements, function and cycles.

`y = ReLU(sum over j with a_j != 0 of a_j W[:, j])`. Row i lives on element i mod N; each element holds its rows
column by column: an entry is a 4-bit code into a table of shared weights and the 4-bit number of zeros before it
within its column, fillers of value zero where more than 15 follow one another, and pointers say where each column
starts. A detector finds the activations that are not zero and broadcasts one a cycle; each element has a queue for
them and works on one entry a cycle. Weights and activations are 16-bit fixed point; sums are exact and rounded once,
with saturation. Han et al. 2016 (arXiv:1602.01528).

The cycle model, with b_j the broadcast of the j-th activation, f_kj its end on element k, e_kj its entries there and
D places in each queue: `b_j = max(b_{j-1} + 1, max_k f_{k,j-D})`, `f_kj = max(f_{k,j-1}, b_j) + e_kj`. An activation
keeps its place in the queue until it is done. Filling and draining of the pipeline are left out. Cycles are those of
the modelled machine: they say nothing about the speed of any program. Shape key: K elements, J active columns,
R rows, C columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fairway.artifact.packing.codebook import read_centroids
from fairway.artifact.parts import Packed, rows_of
from fairway.core.errors import ConfigError

Array = np.ndarray[Any, Any]

WIDTH = 16
"""Bits of a fixed-point number, and of a column pointer."""
_LIMIT = 2 ** (WIDTH - 1)


@dataclass(frozen=True)
class Machine:
    """The modelled hardware."""

    elements: int = 64
    fifo: int = 8
    """Activations that wait in each element's queue, the one being worked on included."""
    run_bits: int = 4
    code_bits: int = 4


@dataclass(frozen=True, eq=False)
class Interleaved:
    """A matrix in interleaved compressed sparse columns."""

    shape: tuple[int, int]
    machine: Machine
    codes: Array
    """Of all entries, element after element, column after column; 0 is a filler."""
    runs: Array
    """Zeros skipped before each entry within its column."""
    pointers_KC: Array
    """Where each column of each element starts, and one more for the end: (K, C + 1)."""
    table: Array
    """What codes stand for as fixed-point integers; `table[0]` is 0."""
    fraction: int
    """Bits of the table's numbers behind the point."""

    @property
    def entries_KC(self) -> Array:
        """Entries of each column on each element, fillers included."""
        return np.diff(self.pointers_KC, axis=1)

    @property
    def fillers(self) -> int:
        """Entries that only carry a run."""
        return int((self.codes == 0).sum())

    @property
    def bits(self) -> int:
        """On-chip bits of entries, pointers, and one table for each element."""
        entry = self.machine.run_bits + self.machine.code_bits
        table = self.machine.elements * WIDTH << self.machine.code_bits
        return len(self.codes) * entry + self.pointers_KC.size * WIDTH + table


@dataclass(frozen=True)
class Work:
    """What one product takes on the modelled machine."""

    cycles: int
    entries: int
    """Entries read, fillers included."""
    fillers: int
    """Those among them that only carry a run."""
    active: int
    """Activations broadcast."""
    dense: int
    """Multiplications of the dense product."""
    elements: int

    @property
    def multiplications(self) -> int:
        """Useful multiplications: fillers are none."""
        return self.entries - self.fillers

    @property
    def balance(self) -> float:
        """Share of all elements' cycles spent on entries; the rest they starve."""
        return self.entries / (self.cycles * self.elements) if self.cycles else 1.0

    @property
    def padding(self) -> float:
        """Share of the entries that are fillers."""
        return self.fillers / self.entries if self.entries else 0.0

    @property
    def saved(self) -> float:
        """Multiplications of the dense product for each useful one."""
        return self.dense / max(1, self.multiplications)


def interleave(packed: Packed, machine: Machine) -> Interleaved:
    """The arrays of a tensor that the packing `sparse` wrote, laid out for the machine.

    Raises `ConfigError` where the tensor is packed otherwise or has more shared weights than codes.
    """
    if packed.kind != "sparse":
        raise ConfigError(f'The packing "{packed.kind}" was given; entries of the packing "sparse" would work.')
    most = (1 << machine.code_bits) - 1
    if packed.settings["count"] > most:
        raise ConfigError(
            f"A tensor has {packed.settings['count']} shared weights; codes of {machine.code_bits} bits name {most} "
            f"beside zero. compress.quantize.clusters={most} would work."
        )
    places = np.cumsum(packed.arrays["gaps"].astype(np.int64) + 1) - 1
    real = packed.arrays["codes"] > 0
    values = read_centroids(packed.arrays["centroids"], packed.settings["exponent"]).numpy().astype(np.float64)
    fraction = fraction_of(values)
    table = np.concatenate(([0], fixed(values, fraction)))
    rows, columns = rows_of(packed.shape)
    return lay_out(places[real], packed.arrays["codes"][real], (rows, columns), table, fraction, machine)


def lay_out(
    places: Array, codes: Array, shape: tuple[int, int], table: Array, fraction: int, machine: Machine
) -> Interleaved:
    """Weights that are not zero, by their places row after row, as entries of each element."""
    columns = shape[1]
    row, column = np.divmod(places, columns)
    element, local = row % machine.elements, row // machine.elements
    cell = element * columns + column
    depth = -(-shape[0] // machine.elements)
    order = np.argsort(cell * depth + local, kind="stable")
    cell, local, codes = cell[order], local[order], codes[order]
    first = np.diff(cell, prepend=-1) != 0
    gaps = local - np.where(first, -1, np.roll(local, 1)) - 1
    reach = 1 << machine.run_bits
    counts = gaps // reach + 1
    ends = np.cumsum(counts) - 1
    all_codes = np.zeros(int(counts.sum()), np.int64)
    all_runs = np.full(len(all_codes), reach - 1)
    all_codes[ends] = codes
    all_runs[ends] = gaps % reach
    cells = np.bincount(cell, counts, machine.elements * columns).astype(np.int64)
    starts = np.concatenate(([0], np.cumsum(cells)))
    pointers_KC = starts[np.arange(machine.elements)[:, None] * columns + np.arange(columns + 1)]
    return Interleaved(shape, machine, all_codes, all_runs, pointers_KC, table, fraction)


def multiply(matrix: Interleaved, activations_C: Array, *, rectify: bool = False) -> Array:
    """The exact sums of products (R) of fixed-point integers, found by walking the entries of active columns.

    Their point stands `matrix.fraction` plus the activations' fraction bits from the right.
    """
    elements, columns = matrix.machine.elements, matrix.shape[1]
    cell = np.repeat(np.arange(elements * columns), matrix.entries_KC.reshape(-1))
    reached = np.cumsum(matrix.runs + 1)
    before = np.concatenate(([0], reached))[matrix.pointers_KC[:, :-1].reshape(-1)]
    local = reached - before[cell] - 1
    row = local * elements + cell // columns
    active = activations_C[cell % columns] != 0
    products = matrix.table[matrix.codes[active]] * activations_C[cell[active] % columns].astype(np.int64)
    sums_R = np.zeros(matrix.shape[0], np.int64)
    np.add.at(sums_R, row[active], products)
    return np.maximum(sums_R, 0) if rectify else sums_R


def work(matrix: Interleaved, activations_C: Array) -> Work:
    """Cycles and entries of one product."""
    active = np.flatnonzero(activations_C)
    entries_KJ = matrix.entries_KC[:, active]
    filled = np.concatenate(([0], np.cumsum(matrix.codes == 0)))[matrix.pointers_KC]
    fillers = int(np.diff(filled, axis=1)[:, active].sum())
    total = cycles(entries_KJ, matrix.machine.fifo)
    dense = matrix.shape[0] * matrix.shape[1]
    return Work(total, int(entries_KJ.sum()), fillers, len(active), dense, matrix.machine.elements)


def cycles(entries_KJ: Array, fifo: int) -> int:
    """Cycles until the last element has worked on its last entry."""
    assert fifo >= 1
    ends_K = np.zeros(len(entries_KJ), np.int64)
    slowest = np.zeros(entries_KJ.shape[1], np.int64)
    broadcast = -1
    for place, entries_K in enumerate(entries_KJ.T):
        freed = int(slowest[place - fifo]) if place >= fifo else 0
        broadcast = max(broadcast + 1, freed)
        ends_K = np.maximum(ends_K, broadcast) + entries_K
        slowest[place] = ends_K.max()
    return int(slowest[-1]) if len(slowest) else 0


def fraction_of(values: Array) -> int:
    """Bits behind the point with which the largest of the numbers still fits."""
    largest = float(np.abs(values).max(initial=0.0))
    return WIDTH - 1 - int(np.frexp(largest)[1]) if largest > 0 else WIDTH - 1


def fixed(values: Array, fraction: int) -> Array:
    """Numbers as 16-bit fixed-point integers, rounded to nearest, saturated."""
    return np.clip(np.rint(np.ldexp(np.asarray(values, np.float64), fraction)), -_LIMIT, _LIMIT - 1).astype(np.int64)


def written_back(sums_R: Array, fraction: int, target: int) -> Array:
    """Exact sums with `fraction` bits behind the point as 16-bit numbers with `target`: halves go up,
    saturated.
    """
    drop = fraction - target
    rounded = (sums_R + (1 << drop >> 1)) >> drop if drop >= 0 else sums_R << -drop
    return np.clip(rounded, -_LIMIT, _LIMIT - 1)
