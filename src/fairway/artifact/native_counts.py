"""How often each number occurs, by the native kernel, and where it cannot serve by numpy."""

from ctypes import c_long, c_void_p
from typing import Any

import numpy as np

from fairway.artifact.parts import Integers
from fairway.core.native import kernel, level

FEWEST_SYMBOLS = 4096
_LARGEST_RANGE = 1 << 14
"""Above this the four tables of the kernel leave the cache."""

Counts = np.ndarray[Any, np.dtype[np.int64]]


def counts(symbols: Integers, low: int, high: int) -> Counts:
    """Of each number in [low, high] how often it stands among the symbols, all of which lie there."""
    size, whole = high - low + 1, symbols.dtype == np.int32 and symbols.flags.c_contiguous
    served = whole and size <= _LARGEST_RANGE and FEWEST_SYMBOLS <= symbols.size < 1 << 32
    if not served or level() is None:
        above = symbols.astype(np.int64) - low if size > 2**30 else symbols - np.int32(low)
        return np.bincount(above.reshape(-1), minlength=size)
    found = np.empty(size, np.int64)
    kernel("count_symbols")(
        c_void_p(symbols.ctypes.data), c_void_p(found.ctypes.data), c_long(low), c_long(symbols.size), c_long(size)
    )
    return found
