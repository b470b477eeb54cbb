"""Scalar levels for weights: one-dimensional k-means, and the choice of a level at least loss and rate
together.

With `cost(w, i) = (w - c_i)^2 + lambda bits_i`, bits_i the code length of level i, the best levels of a
sorted vector are intervals; their borders are `(c_i + c_j) / 2 + lambda (bits_j - bits_i) / (2 (c_j -
c_i))`. At lambda 0 this is k-means. For many levels lambda `step^2 ln 2 / 6` gives the rate and error of a
uniform step. Lloyd 1982; entropy-constrained: Chou et al. 1989.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Vector = np.ndarray[Any, np.dtype[np.float64]]
Start = Literal["linear", "density", "random"]


@dataclass(frozen=True)
class Levels:
    """Rising levels, and the borders between them."""

    values: Vector
    borders: Vector
    bits: Vector
    """Code length of each level."""

    def assign(self, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The level of each weight, by its place."""
        return np.searchsorted(self.borders, weights, side="left")


class Sorted:
    """A vector of weights sorted once, with running sums, so that any interval's mean and error cost
    nothing.
    """

    def __init__(self, weights: np.ndarray[Any, Any]) -> None:
        self.weights = np.sort(np.asarray(weights, np.float64).reshape(-1))
        self._sums = np.concatenate(([0.0], np.cumsum(self.weights)))
        self._squares = np.concatenate(([0.0], np.cumsum(self.weights**2)))

    def __len__(self) -> int:
        return len(self.weights)

    def intervals(self, borders: Vector) -> tuple[np.ndarray, Vector]:
        """Counts and sums of the intervals between borders."""
        cuts = np.concatenate(([0], np.searchsorted(self.weights, borders, side="right"), [len(self.weights)]))
        return np.diff(cuts), np.diff(self._sums[cuts])

    def error(self, levels: Levels) -> float:
        """Sum of squared distances to the levels."""
        counts, sums = self.intervals(levels.borders)
        return float(self._squares[-1] - 2 * (levels.values @ sums) + (levels.values**2 @ counts))

    def starts(self, count: int, start: Start, generator: np.random.Generator) -> Vector:
        """First levels: evenly over the range, over the quantiles, or random weights."""
        low, high = self.weights[0], self.weights[-1]
        if start == "linear":
            return np.unique(np.linspace(low, high, count))
        if start == "density":
            return np.unique(self.weights[((np.arange(count) + 0.5) / count * len(self)).astype(np.int64)])
        return np.unique(generator.choice(self.weights, min(count, len(self)), replace=False))


def fit_levels(
    data: Sorted, first: Vector, multiplier: float = 0.0, rounds: int = 1000, tolerance: float = 1e-7
) -> Levels:
    """Levels that no round of assigning and averaging improves by a share of more than `tolerance`, from the given
    first ones; levels left empty vanish. Rounds are many and improve little each, but cost next to nothing.
    """
    values = np.asarray(first, np.float64)
    bits = np.full(len(values), math.log2(max(1, len(values))))
    borders = (values[1:] + values[:-1]) / 2
    previous = math.inf
    for _ in range(rounds):
        values, bits, borders = _envelope(values, bits, multiplier)
        counts, sums = data.intervals(borders)
        alive = counts > 0
        values, counts = sums[alive] / counts[alive], counts[alive]
        bits = -np.log2(counts / counts.sum())
        levels = Levels(*_ordered(_envelope(values, bits, multiplier)))
        objective = data.error(levels) + multiplier * _rate(data, levels)
        if objective >= previous * (1 - tolerance):
            break
        previous = objective
    return Levels(*_ordered(_envelope(values, bits, multiplier)))


def fixed_levels(values: Vector, weights: np.ndarray[Any, Any], multiplier: float, rounds: int = 8) -> Levels:
    """Best choice among given levels at a price for bits; the levels stay, those never worth their bits get
    no interval.
    """
    data = Sorted(weights)
    bits = np.full(len(values), math.log2(len(values)))
    levels = Levels(*_ordered(_envelope(values, bits, multiplier)))
    for _ in range(rounds):
        counts, _ = data.intervals(levels.borders)
        alive = counts > 0
        bits = -np.log2(counts[alive] / counts.sum())
        levels = Levels(*_ordered(_envelope(levels.values[alive], bits, multiplier)))
    return levels


def price(step: float) -> float:
    """The multiplier whose best levels have the rate and error of a uniform step, where there are many."""
    return step * step * math.log(2) / 6


def _rate(data: Sorted, levels: Levels) -> float:
    counts, _ = data.intervals(levels.borders)
    return float(counts @ levels.bits)


def _ordered(parts: tuple[Vector, Vector, Vector]) -> tuple[Vector, Vector, Vector]:
    values, bits, borders = parts
    return values, borders, bits


def _envelope(values: Vector, bits: Vector, multiplier: float) -> tuple[Vector, Vector, Vector]:
    """The levels that are best somewhere, with the borders between them."""
    gaps = np.diff(values)
    if gaps.size and gaps.min() > 0:
        borders_all = (values[1:] + values[:-1]) / 2 + multiplier * np.diff(bits) / (2 * gaps)
        if not (np.diff(borders_all) <= 0).any():
            return values, bits, borders_all
    kept_values, kept_bits, borders = [float(values[0])], [float(bits[0])], []
    for value, length in zip(values[1:].tolist(), bits[1:].tolist(), strict=True):
        while True:
            gap = value - kept_values[-1]
            if gap <= 0:
                border = -math.inf if length < kept_bits[-1] else math.inf
            else:
                border = (value + kept_values[-1]) / 2 + multiplier * (length - kept_bits[-1]) / (2 * gap)
            if borders and border <= borders[-1]:
                kept_values.pop(), kept_bits.pop(), borders.pop()
                continue
            break
        if border == -math.inf:
            kept_values[-1], kept_bits[-1] = value, length
        elif border < math.inf:
            kept_values.append(value)
            kept_bits.append(length)
            borders.append(border)
    return np.array(kept_values), np.array(kept_bits), np.array(borders)
