"""Steps on a logarithmic grid: `2^(exponent / resolution)`, so that a few bits say each well enough."""

from typing import Any

import numpy as np

RESOLUTION = 8
"""Steps per octave."""
OCTAVES = 100
"""Steps lie within so many octaves of 1."""
LARGEST = 2**20
"""No code that multiplies a step is larger than this."""


def nearest_exponents(steps: np.ndarray[Any, Any], resolution: int = RESOLUTION) -> np.ndarray[Any, Any]:
    """Exponents of the steps on the grid that are nearest to the given ones; zero steps get the smallest."""
    limit = OCTAVES * resolution
    with np.errstate(divide="ignore"):
        exponents = np.rint(np.log2(np.asarray(steps, np.float64)) * resolution)
    return np.clip(exponents, -limit, limit).astype(np.int64)


def steps_of(exponents: np.ndarray[Any, Any], resolution: int = RESOLUTION) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The steps that exponents stand for, in float32."""
    octave, part = np.divmod(exponents, resolution)
    mantissas = np.array([2.0 ** (index / resolution) for index in range(resolution)], np.float32)
    return np.ldexp(mantissas[part], octave.astype(np.int32))
