"""Interleaved asymmetric numeral systems: many coders side by side share one stream of 16-bit words: the definition.

Symbol i belongs to lane i mod L. A lane's state x lies in [2^16, 2^32). Decoding takes the place s whose span [c_s,
c_s + f_s) holds `x mod 2^p`, sets `x = f_s floor(x / 2^p) + x mod 2^p - c_s`, and below 2^16 takes in the next word:
`x = 2^16 x + word`; lanes take words in their order. Encoding is the inverse from the last symbol to the first, so it
ends with the states that decoding begins with; decoding ends with every state at 2^16 and no word left. Places without
a span are rare: another one, itself rare, stands for them all, and which ones they were is handed out and in apart.
Duda 2009 (arXiv:0902.0271), Giesen 2014 (arXiv:1402.3392).
"""

from typing import Any

import numpy as np

from fairway.artifact.parts import Integers, refuse_unless

FIRST_STATE = 1 << 16
MOST_LANES = 64
SYMBOLS_OF_A_LANE = 4096
NONE = -1
"""The place that stands for the rare ones where there are none."""
NO_PLACES = np.zeros(0, np.int32)

Words = np.ndarray[Any, np.dtype[np.uint16]]
States = np.ndarray[Any, np.dtype[np.uint32]]
Spans = np.ndarray[Any, np.dtype[np.uint32]]


def lane_count(count: int) -> int:
    """Lanes for a number of symbols: a power of two up to 64, so that the states stay a small part of the stream."""
    return min(MOST_LANES, 1 << max(0, (count // SYMBOLS_OF_A_LANE).bit_length() - 1))


def spans(weights: list[int], bits: int) -> Spans:
    """Whole numbers of at least 1 that sum to `2^bits`, in proportion to the weights: largest remainders.

    Computed from integers, so the same on every machine.
    """
    total, whole = sum(weights), 1 << bits
    assert len(weights) <= whole
    shares = [max(1, weight * whole // total) for weight in weights]
    missing = whole - sum(shares)
    order = sorted(range(len(weights)), key=lambda place: (-(weights[place] * whole % total), place))
    for place in order[: max(0, missing)]:
        shares[place] += 1
    while missing < 0:
        place = max(range(len(shares)), key=lambda place: (shares[place], -place))
        taken = min(-missing, max(1, shares[place] // 64), shares[place] - 1)
        shares[place] -= taken
        missing += taken
    return np.array(shares, np.uint32)


def encode(
    places: Integers, span_S: Spans, bits: int, stand_in: int = NONE, first: int = 0
) -> tuple[States, Words, Integers]:
    """The states that decoding begins with, the words in the order that decoding takes them, and the rare places.

    Places, rare ones too, are numbers from `first` on; spans and the one that stands in count from 0.
    """
    lanes, places = lane_count(len(places)), places - np.int32(first)
    frequency, start = span_S.astype(np.uint64), _starts(span_S).astype(np.uint64)
    odd = (span_S[places] == 0) | (places == stand_in)
    rare, places = places[odd].astype(np.int32) + np.int32(first), np.where(odd, stand_in, places)
    state = np.full(lanes, FIRST_STATE, np.uint64)
    found: list[Words] = []
    for begin in range((max(1, len(places)) - 1) // lanes * lanes, -1, -lanes):
        place = places[begin : begin + lanes]
        x, f = state[: len(place)], frequency[place]
        full = x >= f << np.uint64(32 - bits)
        found.append((x[full] & np.uint64(0xFFFF)).astype(np.uint16))
        x = np.where(full, x >> np.uint64(16), x)
        state[: len(place)] = (x // f << np.uint64(bits)) + x % f + start[place]
    return state.astype(np.uint32), np.concatenate(found[::-1]) if found else np.zeros(0, np.uint16), rare


def decode(
    words: Words,
    state: States,
    count: int,
    span_S: Spans,
    bits: int,
    rare: Integers = NO_PLACES,
    stand_in: int = NONE,
    first: int = 0,
) -> Integers:
    """The places that were encoded; raises `ArtifactError` where words, states and rare places do not fit `count`."""
    lanes = len(state)
    frequency, start = span_S.astype(np.uint64), _starts(span_S).astype(np.uint64)
    holder = np.repeat(np.arange(len(span_S), dtype=np.int32), span_S)
    x, taken = state.astype(np.uint64), 0
    places = np.zeros(count, np.int32)
    for begin in range(0, count, lanes):
        active = x[: count - begin]
        slot = active & np.uint64((1 << bits) - 1)
        place = holder[slot.astype(np.int64)]
        places[begin : begin + lanes] = place
        active = frequency[place] * (active >> np.uint64(bits)) + slot - start[place]
        short = np.flatnonzero(active < FIRST_STATE)
        refuse_unless(taken + len(short) <= len(words), ENDS_EARLY)
        active[short] = active[short] << np.uint64(16) | words[taken : taken + len(short)]
        taken += len(short)
        x[: count - begin] = active
    refuse_unless(taken == len(words) and bool((x == FIRST_STATE).all()), NOT_ITS_OWN)
    odd = places == stand_in
    refuse_unless(int(odd.sum()) == len(rare), NOT_ITS_OWN)
    places += np.int32(first)
    places[odd] = rare
    return places


def _starts(span_S: Spans) -> Spans:
    return (np.cumsum(span_S, dtype=np.uint64) - span_S).astype(np.uint32)


ENDS_EARLY = "A coded stream ends before its last symbol."
NOT_ITS_OWN = "A coded stream holds more or less than its symbols."
