"""Interleaved asymmetric numeral systems: many coders side by side, decoded together by wide instructions.

The state machine and the split into lanes stand in `fairway.artifact.lanes`; the frequencies come from a short table in
front, brought to a grid of 2^12 to 2^15. Symbols that are too rare for a place on the grid share one, and which of them
was meant follows in a stream of its own. Duda 2009 (arXiv:0902.0271); interleaving: Giesen 2014. Shape key: S symbols,
R rare symbols.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fairway.artifact import native_lanes
from fairway.artifact.lanes import FIRST_STATE, NO_PLACES, NONE, Spans, States, Words, lane_count, spans
from fairway.artifact.parts import Coder, CoderConfig, Integers, refuse_unless
from fairway.artifact.table import Histogram, Table, fit_table, joined, low_bytes, read_table, split
from fairway.core.config import Source

SOURCE = Source("Giesen", 2014, "arXiv:1402.3392")

Counts = np.ndarray[Any, np.dtype[np.int64]]
GRIDS = {12: 0.0, 13: 0.0001, 14: 0.0003, 15: 0.0008}
"""Bits of a grid, and the bits that a symbol loses because a state of 32 bits has so few above it."""
RARE_GRID = 14
_SHARED = 0x80
"""Set in a stream's first byte where rare symbols share a place."""
_BITS_OF_A_LANE = 24
_WIDEST_GRID = 1 << 14
"""Symbols that lie farther apart are looked up in the table, for their spans would leave the cache."""


class Config(CoderConfig):
    """Interleaved asymmetric numeral systems; takes no settings."""

    def build(self) -> "Rans":
        return Rans()


class Rans(Coder):
    """Table, bits of the grid, states, words, low bits. Ends that do not fit betray a wrong count."""

    def estimate(self, values: np.ndarray, counts: np.ndarray) -> float:
        return fit_table(Histogram(values, counts))[1] + 8 + _BITS_OF_A_LANE * lane_count(int(counts.sum()))

    def encode(self, symbols: Integers) -> bytes:
        histogram = Histogram.of(symbols)
        table, _ = fit_table(histogram)
        if len(table.symbols) <= 1:
            return table.serialise() + split(symbols, table)[1]
        grid = best_grid(table.weights(), histogram.shifted(table.shift).counts)
        own = own_grid(grid, table)
        places, low = (symbols, b"") if own else split(symbols, table)
        return b"".join((table.serialise(), *(own or grid).encode(places), low))

    def decode(self, data: bytes, count: int) -> Integers:
        table, start = read_table(data)
        stop = len(data) - low_bytes(table, count)
        refuse_unless(start <= stop, "A coded stream is shorter than its table says.")
        if len(table.symbols) > 1:
            grid, body = _read_grid(memoryview(data)[start:stop], table)
            own = own_grid(grid, table)
            places = (own or grid).decode(body, count)
            if own:
                return places
        else:
            refuse_unless(start == stop, "A stream of one symbol holds coded words.")
            refuse_unless(bool(table.symbols) or not count, "A stream has no symbols in its table.")
            places = np.zeros(count, np.int32)
        return joined(places, data[stop:], table) if count else places


@dataclass(frozen=True)
class Grid:
    """What each symbol has of `2^bits` numbers; where some are rare, the first of these has what they share."""

    bits: int
    span_S: Spans
    rare_R: Integers
    """Places of the symbols that share, rising; none or at least two."""
    rare_span_R: Spans
    first: int = 0
    """The place that `span_S` begins with."""

    @property
    def stand_in(self) -> int:
        """Which span stands for the rare ones."""
        return int(self.rare_R[0]) - self.first if len(self.rare_R) else NONE

    def encode(self, places: Integers) -> tuple[memoryview | bytes, ...]:
        """The bits of the grid, and where symbols share: how many these are, the words of their stream, and the stream;
        then the stream of all.
        """
        states, words, rare = native_lanes.encode(places, self.span_S, self.bits, self.stand_in, self.first)
        if not len(self.rare_R):
            return bytes((self.bits,)), *_stream(states, words)
        which, which_words, _ = native_lanes.encode(rare, self._which(), RARE_GRID, first=int(self.rare_R[0]))
        sizes = len(rare).to_bytes(4, "little") + len(which_words).to_bytes(4, "little")
        head = bytes((self.bits | _SHARED,)) + sizes
        return head, *_stream(which, which_words), *_stream(states, words)

    def decode(self, body: memoryview, count: int) -> Integers:
        """What was encoded, from all that follows the bits of the grid."""
        rare, start = self._rare(body, count) if len(self.rare_R) else (NO_PLACES, 0)
        states, words = _parted(body[start:], count)
        return native_lanes.decode(words, states, count, self.span_S, self.bits, rare, self.stand_in, self.first)

    def _rare(self, body: memoryview, count: int) -> tuple[Integers, int]:
        """The rare places, and where their stream ends."""
        number, size = int.from_bytes(body[:4], "little"), int.from_bytes(body[4:8], "little")
        refuse_unless(number <= count, "A coded stream holds more rare symbols than symbols.")
        stop = 8 + 4 * lane_count(number) + 2 * size
        refuse_unless(stop <= len(body), "A coded stream ends within its rare symbols.")
        states, words = _parted(body[8:stop], number)
        first = int(self.rare_R[0])
        return native_lanes.decode(words, states, number, self._which(), RARE_GRID, first=first), stop

    def _which(self) -> Spans:
        """Spans of the symbols that share, from the first of them on."""
        return spread(self.rare_span_R, self.rare_R)


def spread(span_S: Spans, places_S: Integers) -> Spans:
    """Spans by the distance of rising places from the first, 0 where there is none."""
    from_first = places_S - places_S[0]
    result = np.zeros(int(from_first[-1]) + 1, np.uint32)
    result[from_first] = span_S
    return result


def grid_of(weights: list[int], bits: int, *, share: bool) -> Grid | None:
    """The grid of these weights; None where they do not fit, or less than two symbols would share."""
    whole = sum(weights)
    rare = [place for place, weight in enumerate(weights) if weight << bits < whole] if share else []
    shown = list(weights)
    for place in rare:
        shown[place] = 0
    if rare:
        shown[rare[0]] = sum(weights[place] for place in rare)
    kept = np.flatnonzero(np.array([weight > 0 for weight in shown]))
    if len(kept) > 1 << (bits - 1) or (share and (len(rare) < 2 or len(kept) < 2)):
        return None
    span_S = np.zeros(len(weights), np.uint32)
    span_S[kept] = spans([shown[place] for place in kept.tolist()], bits)
    rare_span_R = spans([weights[place] for place in rare], RARE_GRID) if rare else np.zeros(0, np.uint32)
    return Grid(bits, span_S, np.array(rare, np.int32), rare_span_R)


def best_grid(weights: list[int], counts: Counts) -> Grid:
    """The grid with the shortest stream: a finer one fits the frequencies better but wastes more of a state."""
    grids = (grid_of(weights, bits, share=share) for share in (False, True) for bits in GRIDS)
    return min((grid for grid in grids if grid is not None), key=lambda grid: _cost(grid, counts))


def own_grid(grid: Grid, table: Table) -> Grid | None:
    """The grid of the symbols themselves instead of their places in the table; None where they lie too far apart, or
    some of their bits are stored apart.
    """
    if table.shift or table.symbols[-1] - table.symbols[0] >= _WIDEST_GRID:
        return None
    symbol_S = np.array(table.symbols, np.int32)
    span = spread(grid.span_S, symbol_S)
    return Grid(grid.bits, span, symbol_S[grid.rare_R], grid.rare_span_R, table.symbols[0])


def _cost(grid: Grid, counts: Counts) -> float:
    span_S = grid.span_S.copy()
    span_S[grid.rare_R] = grid.span_S[grid.stand_in] if len(grid.rare_R) else 0
    coded = float(counts @ (grid.bits - np.log2(span_S) + GRIDS[grid.bits]))
    if not len(grid.rare_R):
        return coded
    count_R = counts[grid.rare_R]
    which = float(count_R @ (RARE_GRID - np.log2(grid.rare_span_R) + GRIDS[RARE_GRID]))
    return coded + which + 64 + 32 * lane_count(int(count_R.sum()))


def _stream(states: States, words: Words) -> tuple[memoryview, memoryview]:
    return states.astype("<u4", copy=False).view(np.uint8).data, words.astype("<u2", copy=False).view(np.uint8).data


def _read_grid(coded: memoryview, table: Table) -> tuple[Grid, memoryview]:
    """The grid of a coded stream, and what follows its bits."""
    refuse_unless(len(coded) > 0, "A coded stream is not made of whole words.")
    bits, share = coded[0] & ~_SHARED, bool(coded[0] & _SHARED)
    grid = grid_of(table.weights(), bits, share=share) if bits in GRIDS else None
    refuse_unless(grid is not None, f"A coded stream has a grid of {bits} bits, which its table does not allow.")
    assert grid is not None
    return grid, coded[1:]


def _parted(stream: memoryview, count: int) -> tuple[States, Words]:
    """The states and words of a stream."""
    lanes = lane_count(count)
    refuse_unless(len(stream) >= 4 * lanes and len(stream) % 2 == 0, "A coded stream is not made of whole words.")
    states = np.frombuffer(stream[: 4 * lanes], "<u4").astype(np.uint32)
    refuse_unless(bool((states >= FIRST_STATE).all()), "A coded stream begins in a state that no encoder leaves.")
    return states, np.frombuffer(stream[4 * lanes :], "<u2").astype(np.uint16)
