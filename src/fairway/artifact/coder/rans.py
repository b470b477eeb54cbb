"""Interleaved asymmetric numeral systems: many coders side by side, decoded together by wide instructions.

The state machine and the split into lanes stand in `fairway.artifact.lanes`; the frequencies come from a short table in
front, brought to a grid of 2^12 to 2^15. Duda 2009 (arXiv:0902.0271); interleaving: Giesen 2014.
"""

import numpy as np

from fairway.artifact import native_lanes
from fairway.artifact.lanes import FIRST_STATE, lane_count, spans
from fairway.artifact.parts import Coder, CoderConfig, Integers, refuse_unless
from fairway.artifact.table import Histogram, Table, fit_table, joined, low_bytes, read_table, split
from fairway.core.config import Source

SOURCE = Source("Giesen", 2014, "arXiv:1402.3392")

GRIDS = {12: 0.0, 13: 0.0001, 14: 0.0003, 15: 0.0008}
"""Bits of a grid, and the bits that a symbol loses because a state of 32 bits has so few above it."""
_BITS_OF_A_LANE = 24


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
        places, low = split(symbols, table)
        coded = b""
        if len(table.symbols) > 1:
            bits = _grid(table, histogram)
            states, words = native_lanes.encode(places, spans(table.weights(), bits), bits)
            coded = bytes((bits,)) + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()
        return table.serialise() + coded + low

    def decode(self, data: bytes, count: int) -> Integers:
        table, start = read_table(data)
        stop = len(data) - low_bytes(table, count)
        refuse_unless(start <= stop, "A coded stream is shorter than its table says.")
        if len(table.symbols) > 1:
            places = _decoded(data[start:stop], table, count)
        else:
            refuse_unless(start == stop, "A stream of one symbol holds coded words.")
            refuse_unless(bool(table.symbols) or not count, "A stream has no symbols in its table.")
            places = np.zeros(count, np.int32)
        return joined(places, data[stop:], table) if count else places


def _grid(table: Table, histogram: Histogram) -> int:
    """Bits of the grid with the shortest stream: a finer one fits the frequencies better but wastes more of a state."""
    counts = histogram.shifted(table.shift).counts
    fit = [bits for bits in GRIDS if len(table.symbols) <= 1 << (bits - 1)]
    lost = {bits: float(counts @ (bits - np.log2(spans(table.weights(), bits)) + GRIDS[bits])) for bits in fit}
    return min(lost, key=lambda bits: lost[bits])


def _decoded(coded: bytes, table: Table, count: int) -> Integers:
    lanes = lane_count(count)
    refuse_unless(len(coded) >= 1 + 4 * lanes and len(coded) % 2 == 1, "A coded stream is not made of whole words.")
    bits = coded[0]
    fits = bits in GRIDS and len(table.symbols) <= 1 << (bits - 1)
    refuse_unless(fits, f"A coded stream has a grid of {bits} bits, which its table does not allow.")
    states = np.frombuffer(coded[1 : 1 + 4 * lanes], "<u4").astype(np.uint32)
    words = np.frombuffer(coded[1 + 4 * lanes :], "<u2").astype(np.uint16)
    refuse_unless(bool((states >= FIRST_STATE).all()), "A coded stream begins in a state that no encoder leaves.")
    return native_lanes.decode(words, states, count, spans(table.weights(), bits), bits)
