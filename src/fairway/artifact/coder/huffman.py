"""Canonical Huffman codes: whole bits for each symbol, the best such code for given frequencies.

The two rarest subtrees are merged until one is left; only the lengths are stored, and codes are handed out
in the order of length, then symbol. Codes longer than 16 bits are avoided by halving frequencies until none
is left. Huffman 1952; as used by Deep Compression (Han et al. 2016, arXiv:1510.00149).
"""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from fairway.artifact.bits import BitReader, BitWriter
from fairway.artifact.parts import Coder, CoderConfig, Integers, refuse_unless
from fairway.artifact.table import (
    LARGEST_ALPHABET,
    Histogram,
    Table,
    fit_table,
    joined,
    low_bytes,
    read_alphabet,
    read_series,
    split,
    write_alphabet,
    write_series,
)
from fairway.core.config import Source

SOURCE = Source("Huffman", 1952, "Proceedings of the IRE 40(9):1098-1101")

LONGEST = 16
_BITS_AT_ONCE = 1 << 22


class Config(CoderConfig):
    """Canonical Huffman codes; takes no settings."""

    def build(self) -> "Huffman":
        return Huffman()


class Huffman(Coder):
    """Alphabet and code lengths, codes, a bit that marks the end, low bits."""

    def estimate(self, values: np.ndarray, counts: np.ndarray) -> float:
        histogram = Histogram(values, counts)
        table, _ = fit_table(histogram)
        reduced = histogram.shifted(table.shift).counts
        lengths = np.array(code_lengths(reduced.tolist()), np.int64)
        return float(reduced @ (lengths + table.shift)) + 8 * len(_table(table, lengths.tolist())) + 4

    def encode(self, symbols: Integers) -> bytes:
        histogram = Histogram.of(symbols)
        table, _ = fit_table(histogram)
        lengths = code_lengths(histogram.shifted(table.shift).counts.tolist())
        places, low = split(symbols, table)
        return _table(table, lengths) + _coded(places, lengths) + low

    def decode(self, data: bytes, count: int) -> Integers:
        reader = BitReader(data[: 16 * LARGEST_ALPHABET])
        symbols, shift = read_alphabet(reader)
        lengths = read_series(reader, len(symbols), 0, LONGEST) if symbols else ()
        start = reader.align()
        table = Table(symbols, lengths, 1, shift)
        stop = len(data) - low_bytes(table, count)
        refuse_unless(start <= stop, "A coded stream is shorter than its table says.")
        refuse_unless(bool(symbols) or not count, "A stream has no symbols in its table.")
        places = _decoded(data[start:stop], lengths, count)
        return joined(places, data[stop:], table) if count else places


def _table(table: Table, lengths: Sequence[int]) -> bytes:
    writer = BitWriter()
    write_alphabet(writer, table.symbols, table.shift)
    if lengths:
        write_series(writer, lengths)
    return writer.data()


def code_lengths(counts: Sequence[int]) -> tuple[int, ...]:
    """Bits of each symbol's code; 0 where there is only one symbol."""
    if len(counts) < 2:
        return (0,) * len(counts)
    counts = list(counts)
    while True:
        lengths = _tree_depths(counts)
        if max(lengths) <= LONGEST:
            return lengths
        counts = [(count + 1) // 2 for count in counts]


def canonical_codes(lengths: Sequence[int]) -> list[int]:
    """Codes in the order of length, then place."""
    codes = [0] * len(lengths)
    code, previous = 0, 0
    for length, place in sorted((length, place) for place, length in enumerate(lengths)):
        code <<= length - previous
        codes[place] = code
        code, previous = code + 1, length
    return codes


def _tree_depths(counts: Sequence[int]) -> tuple[int, ...]:
    heap = [(count, place) for place, count in enumerate(counts)]
    heapq.heapify(heap)
    parents: dict[int, int] = {}
    inner = len(counts)
    while len(heap) > 1:
        light, left = heapq.heappop(heap)
        heavy, right = heapq.heappop(heap)
        parents[left] = parents[right] = inner
        heapq.heappush(heap, (light + heavy, inner))
        inner += 1
    depths = {inner - 1: 0}
    for node in range(inner - 2, -1, -1):
        depths[node] = depths[parents[node]] + 1
    return tuple(depths[place] for place in range(len(counts)))


def _coded(places: Integers, lengths: Sequence[int]) -> bytes:
    if len(lengths) < 2:
        return b""
    width = np.array(lengths, np.int64)[places]
    code = np.array(canonical_codes(lengths), np.uint32)[places]
    owner = np.repeat(np.arange(len(places)), width)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(width) - width, width)
    bits = (code[owner] >> (width[owner] - 1 - place).astype(np.uint32)) & 1
    return np.packbits(np.append(bits, 1).astype(np.uint8)).tobytes()


def _decoded(data: bytes, lengths: Sequence[int], count: int) -> Integers:
    if len(lengths) < 2:
        refuse_unless(not data and not any(lengths), "A stream of one symbol holds coded bits.")
        return np.zeros(count, np.int32)
    symbol_at, length_at = _lookup(lengths)
    refuse_unless(count <= 8 * len(data), "A coded stream is too short for its symbols.")
    window = _windows(data)
    steps = np.concatenate([length_at[piece] for piece in window]).tobytes()
    starts, position = np.zeros(count, np.int64), 0
    limit = len(steps)
    for index in range(count):
        refuse_unless(position < limit, "A coded stream ends before its last symbol.")
        starts[index] = position
        position += steps[position]
    end = np.unpackbits(np.frombuffer(data[position // 8 :], np.uint8))[position % 8 :]
    refuse_unless(
        end.size > 0 and end[0] == 1 and end.size <= 8 and end.sum() == 1,
        "A coded stream holds more or less than its symbols.",
    )
    whole = np.frombuffer(data + bytes(4), np.uint8).astype(np.uint32)
    octet, inside = starts >> 3, (starts & 7).astype(np.uint32)
    three = whole[octet] << 16 | whole[octet + 1] << 8 | whole[octet + 2]
    return symbol_at[(three >> (24 - LONGEST - inside)) & ((1 << LONGEST) - 1)]


def _lookup(lengths: Sequence[int]) -> tuple[Integers, np.ndarray[Any, np.dtype[np.uint8]]]:
    """For every string of 16 bits, the place of the symbol that it begins with, and that code's length."""
    refuse_unless(min(lengths) >= 1, "A table gives a symbol no bits.")
    kraft = sum(1 << (LONGEST - length) for length in lengths)
    refuse_unless(kraft == 1 << LONGEST, "A table's code lengths do not make a complete code.")
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    spans = [1 << (LONGEST - lengths[place]) for place in order]
    symbols = np.repeat(np.array(order, np.int32), spans)
    return symbols, np.array(lengths, np.uint8)[symbols]


def _windows(data: bytes) -> list[np.ndarray[Any, np.dtype[np.uint16]]]:
    """The 16 bits that start at every bit, in pieces."""
    octets = np.frombuffer(data + bytes(2), np.uint8).astype(np.uint32)
    three = octets[:-2] << 16 | octets[1:-1] << 8 | octets[2:]
    inside = np.arange(8, dtype=np.uint32)
    pieces = []
    for start in range(0, len(three), _BITS_AT_ONCE // 8):
        chunk = three[start : start + _BITS_AT_ONCE // 8]
        pieces.append(((chunk[:, None] >> (8 - inside)) & 0xFFFF).astype(np.uint16).reshape(-1))
    return pieces
