"""A frequency table that is small to store: which symbols occur, and the logarithms of their frequencies.

A symbol is the part of an integer above its `shift` low bits; those are stored as they are, which keeps the
table of a wide alphabet short. Frequencies are rounded to a grid of `resolution` steps per octave: at 8
steps this costs 0.0005 bit a symbol. Levels are stored as first or second differences in Rice code,
whichever is shorter.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from fairway.artifact.bits import BitReader, BitWriter, best_rice, unzigzag, zigzag
from fairway.artifact.native_counts import counts
from fairway.artifact.parts import Integers, refuse_unless, within

LARGEST_ALPHABET = 4096
LARGEST_SHIFT = 24
RESOLUTIONS = (4, 8, 16, 32)
_MANTISSAS = {count: [round(2 ** (index / count) * 65536) for index in range(count)] for count in RESOLUTIONS}
_LARGEST_LEVEL = 40


@dataclass(frozen=True)
class Table:
    """Symbols in rising order and their frequencies as `2^(level / resolution)`."""

    symbols: tuple[int, ...]
    levels: tuple[int, ...]
    resolution: int
    shift: int

    def weights(self) -> list[int]:
        """One positive weight per symbol, in proportion to its frequency."""
        mantissas = _MANTISSAS[self.resolution]
        return [mantissas[level % self.resolution] << (level // self.resolution) for level in self.levels]

    def probabilities(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One probability per symbol; computed from integers, so the same on every machine."""
        weights = self.weights()
        return np.array(weights, np.float64) / float(sum(weights))

    def serialise(self) -> bytes:
        """The table as bytes."""
        writer = BitWriter()
        writer.fixed(RESOLUTIONS.index(self.resolution), 2)
        write_alphabet(writer, self.symbols, self.shift)
        if self.symbols:
            write_series(writer, self.levels)
        return writer.data()


def read_table(data: bytes) -> tuple[Table, int]:
    """The table at the start of `data`, and how many bytes it takes; raises `ArtifactError` where there is
    none.
    """
    reader = BitReader(data[: 16 * LARGEST_ALPHABET])
    resolution = RESOLUTIONS[reader.fixed(2)]
    symbols, shift = read_alphabet(reader)
    levels = read_series(reader, len(symbols), 0, _LARGEST_LEVEL * resolution) if symbols else ()
    return Table(symbols, levels, resolution, shift), reader.align()


def write_alphabet(writer: BitWriter, symbols: Sequence[int], shift: int) -> None:
    """Rising symbols, and the number of low bits left out of them."""
    writer.fixed(shift, 5)
    writer.gamma(len(symbols) + 1)
    if symbols:
        writer.gamma(zigzag([symbols[0]])[0] + 1)
        gaps = [right - left - 1 for left, right in itertools.pairwise(symbols)]
        writer.fixed(int(any(gaps)), 1)
        if any(gaps):
            parameter, _ = best_rice(gaps)
            writer.fixed(parameter, 4)
            writer.rice(gaps, parameter)


def read_alphabet(reader: BitReader) -> tuple[tuple[int, ...], int]:
    """What `write_alphabet` wrote, checked."""
    shift = reader.fixed(5)
    count = reader.gamma() - 1
    refuse_unless(count <= LARGEST_ALPHABET, f"A table lists {count} symbols; at most {LARGEST_ALPHABET} may be.")
    refuse_unless(shift <= LARGEST_SHIFT, f"A table leaves {shift} low bits out; at most {LARGEST_SHIFT} may be.")
    if not count:
        return (), shift
    first = unzigzag([reader.gamma() - 1])[0]
    gaps = reader.rice(count - 1, reader.fixed(4)) if reader.fixed(1) else [0] * (count - 1)
    symbols = tuple(np.cumsum([first, *(gap + 1 for gap in gaps)]).tolist())
    largest = (2**31 - 1) >> shift
    refuse_unless(-largest - 1 <= symbols[0] and symbols[-1] <= largest, "A table lists symbols beyond 32 bits.")
    return symbols, shift


def write_series(writer: BitWriter, values: Sequence[int]) -> None:
    """Numbers that change little from one to the next, by their first or second differences."""
    coded = {order: zigzag(_differences(values, order)) for order in (1, 2)}
    order = min(coded, key=lambda order: best_rice(coded[order])[1])
    parameter, _ = best_rice(coded[order])
    writer.fixed(order - 1, 1)
    writer.fixed(parameter, 4)
    writer.rice(coded[order], parameter)


def read_series(reader: BitReader, count: int, low: int, high: int) -> tuple[int, ...]:
    """What `write_series` wrote; refused where a number lies outside [low, high]."""
    order = reader.fixed(1) + 1
    values = np.asarray(unzigzag(reader.rice(count, reader.fixed(4))), np.int64)
    for _ in range(order):
        values = np.cumsum(values)
    within(values, low, high, "The numbers of a table")
    return tuple(values.tolist())


@dataclass(frozen=True)
class Histogram:
    """The distinct integers of a vector in rising order, and how often each occurs."""

    values: np.ndarray[Any, np.dtype[np.int64]]
    counts: np.ndarray[Any, np.dtype[np.int64]]

    @staticmethod
    def of(symbols: Integers) -> "Histogram":
        """The histogram of a vector."""
        if not symbols.size:
            return Histogram(np.zeros(0, np.int64), np.zeros(0, np.int64))
        low, high = int(symbols.min()), int(symbols.max())
        if high - low > max(1 << 16, 4 * symbols.size):
            values, times = np.unique(symbols, return_counts=True)
            return Histogram(values.astype(np.int64), times.astype(np.int64))
        found = counts(symbols, low, high)
        present = np.flatnonzero(found)
        return Histogram(present + low, found[present])

    def __add__(self, other: "Histogram") -> "Histogram":
        values, place = np.unique(np.concatenate((self.values, other.values)), return_inverse=True)
        counts = np.bincount(place, np.concatenate((self.counts, other.counts)).astype(np.float64), len(values))
        return Histogram(values, counts.astype(np.int64))

    def entropy(self) -> float:
        """Empirical entropy in bits, of all integers together."""
        total = self.counts.sum()
        return float(-(self.counts * np.log2(self.counts / total)).sum()) if total else 0.0

    def shifted(self, shift: int) -> "Histogram":
        """The histogram of the integers without their low bits."""
        if shift == 0 or not len(self.values):
            return self
        high = self.values >> shift
        starts = np.flatnonzero(np.diff(high, prepend=high[0] - 1))
        return Histogram(high[starts], np.add.reduceat(self.counts, starts))


def total(histograms: Sequence[Histogram]) -> Histogram:
    """The histogram of several vectors together."""
    return reduce(add, histograms)


def fit_table(histogram: Histogram) -> tuple[Table, float]:
    """The table with the smallest total of itself and the coded symbols, and that total in bits."""
    if not len(histogram.values):
        return Table((), (), RESOLUTIONS[0], 0), 16.0
    found: list[tuple[Table, float]] = []
    for shift in range(LARGEST_SHIFT + 1):
        reduced = histogram.shifted(shift)
        if len(reduced.values) <= LARGEST_ALPHABET:
            found.append(min(_candidates(reduced, shift), key=_bits))
        if len(reduced.values) < 24 or (len(found) > 3 and _bits(found[-1]) > 1.02 * min(map(_bits, found))):
            break
    return min(found, key=_bits)


def _bits(candidate: tuple[Table, float]) -> float:
    return candidate[1]


def _candidates(histogram: Histogram, shift: int) -> Iterator[tuple[Table, float]]:
    counts = histogram.counts
    total = int(counts.sum())
    logarithms = np.log2(counts)
    symbols = tuple(histogram.values.tolist())
    gaps = histogram.values[1:] - histogram.values[:-1] - 1
    listed = best_rice(gaps.tolist())[1] if gaps.any() else 0
    for resolution in RESOLUTIONS:
        levels = np.rint(logarithms * resolution).astype(np.int64)
        weights = 2.0 ** (levels / resolution)
        coded = float(counts @ (np.log2(weights.sum()) - levels / resolution))
        tables = min(best_rice(zigzag(_differences(tuple(levels.tolist()), order)))[1] for order in (1, 2))
        table = Table(symbols, tuple(levels.tolist()), resolution, shift)
        yield table, coded + tables + listed + total * shift + 40


def _differences(values: Sequence[int], order: int) -> list[int]:
    result = np.array(values, np.int64)
    for _ in range(order):
        result[1:] -= result[:-1].copy()
    return result.tolist()


def split(symbols: Integers, table: Table) -> tuple[Integers, bytes]:
    """Places in the table of the symbols' upper parts, and their low bits packed."""
    high = symbols >> table.shift if table.shift else symbols
    listed = np.array(table.symbols, np.int64)
    reach = int(listed[-1] - listed[0]) + 1 if len(listed) else 0
    if 0 < reach == len(listed):
        places = high - listed[0].astype(high.dtype)
    elif 0 < reach <= 1 << 16:
        place_of = np.zeros(reach, np.int32)
        place_of[listed - listed[0]] = np.arange(len(listed), dtype=np.int32)
        places = place_of[high - listed[0].astype(high.dtype)]
    else:
        places = np.searchsorted(listed, high)
    return places.astype(np.int32, copy=False), _low_bits(symbols, table.shift)


def _low_bits(symbols: Integers, shift: int) -> bytes:
    if not shift:
        return b""
    low = (symbols & ((1 << shift) - 1)).astype(np.uint8 if shift <= 8 else np.uint32)
    bits = np.empty((len(low), shift), np.uint8)
    for place in range(shift):
        bits[:, place] = (low >> place) & 1
    return np.packbits(bits).tobytes()


def joined(places: Integers, low: bytes, table: Table) -> Integers:
    """The inverse of `split`."""
    first, last = table.symbols[0], table.symbols[-1]
    contiguous = last - first == len(table.symbols) - 1
    symbols = places + np.int32(first) if contiguous else np.array(table.symbols, np.int32)[places]
    if not table.shift:
        return symbols
    count = len(places) * table.shift
    bits = np.unpackbits(np.frombuffer(low, np.uint8))
    refuse_unless(not bits[count:].any(), "There are stray bits behind the low bits of a stream.")
    values = bits[:count].reshape(-1, table.shift).astype(np.int32) << np.arange(table.shift, dtype=np.int32)
    return (symbols << table.shift) | values.sum(axis=1, dtype=np.int32)


def low_bytes(table: Table, count: int) -> int:
    """Bytes of the low bits of `count` symbols."""
    return -(-count * table.shift // 8)
