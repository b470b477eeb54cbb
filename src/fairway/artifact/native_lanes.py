"""Interleaved asymmetric numeral systems by the native kernel, and where there is none by numpy.

See `lanes.py` for the definition.
"""

from ctypes import c_int, c_long, c_void_p
from typing import Any

import numpy as np

from fairway.artifact import lanes
from fairway.artifact.lanes import ENDS_EARLY, NO_PLACES, NONE, NOT_ITS_OWN, Spans, States, Words
from fairway.artifact.parts import Integers, refuse_unless
from fairway.core.native import kernel, level

_SPARE_WORDS = 16
"""The kernel stores whole vectors, whose first words nobody needs."""


def encode(
    places: Integers, span_S: Spans, bits: int, stand_in: int = NONE, first: int = 0
) -> tuple[States, Words, Integers]:
    """The same as `lanes.encode`."""
    if level() is None or not len(places):
        return lanes.encode(places, span_S, bits, stand_in, first)
    places = np.ascontiguousarray(places, np.int32)
    state = np.full(lanes.lane_count(len(places)), lanes.FIRST_STATE, np.uint32)
    words, used = np.empty(len(places) + _SPARE_WORDS, np.uint16), np.zeros(2, np.int64)
    rare = np.empty(0 if stand_in == NONE else len(places), np.int32)
    kernel("rans_encode")(
        _address(places), _address(span_S), _address(state), _address(words), _address(rare), _address(used),
        c_long(len(places)), c_long(len(state)), c_long(first), c_long(len(span_S)), c_long(stand_in), c_int(bits),
    )  # fmt: skip
    return state, words[len(words) - int(used[0]) :], rare[len(rare) - int(used[1]) :]


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
    """The same as `lanes.decode`."""
    if level() is None or not count:
        return lanes.decode(words, state, count, span_S, bits, rare, stand_in, first)
    words, state, rare = np.ascontiguousarray(words), state.copy(), np.ascontiguousarray(rare, np.int32)
    places, taken = np.empty(count, np.int32), np.zeros(2, np.int64)
    kernel("rans_decode")(
        _address(words), _address(span_S), _address(state), _address(places), _address(rare), _address(taken),
        c_long(count), c_long(len(state)), c_long(first), c_long(len(span_S)), c_long(len(words)), c_long(len(rare)),
        c_long(stand_in), c_int(bits),
    )  # fmt: skip
    refuse_unless(int(taken[0]) >= 0, ENDS_EARLY)
    refuse_unless(int(taken[0]) == len(words) and bool((state == lanes.FIRST_STATE).all()), NOT_ITS_OWN)
    refuse_unless(int(taken[1]) == len(rare), NOT_ITS_OWN)
    return places


def _address(array: np.ndarray[Any, Any]) -> c_void_p:
    return c_void_p(array.ctypes.data)
