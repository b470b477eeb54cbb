"""The cheapest path through a trellis by the native kernel, and where there is none by numpy.

See `naive.py` for the definition.
"""

from ctypes import c_long, c_void_p
from typing import Any

import numpy as np

from fairway.core.native import kernel, level
from fairway.ops.trellis import naive
from fairway.ops.trellis.naive import Numbers, Whole


def search(target_N: Numbers, price_N: Numbers, next_SB: Whole) -> Whole:
    """The same as `naive.search`."""
    if level() is None or not len(target_N):
        return naive.search(target_N, price_N, next_SB)
    target_N, price_N = (np.ascontiguousarray(array, np.float64) for array in (target_N, price_N))
    leads_SB = naive.predecessors(next_SB)
    best_N = np.empty(len(target_N), np.int32)
    kernel("trellis_search")(
        *map(_address, (target_N, price_N, leads_SB, best_N)), c_long(len(target_N)), c_long(len(next_SB))
    )
    return best_N


def _address(array: np.ndarray[Any, Any]) -> c_void_p:
    return c_void_p(array.ctypes.data)
