"""One-dimensional k-means against dynamic programming, and the price of bits."""

import numpy as np
import pytest

from fairway.compress.levels import Sorted, Start, fit_levels, fixed_levels, price


def best_error(weights: np.ndarray, count: int) -> float:
    """Least sum of squares with so many levels, by dynamic programming over the sorted weights."""
    values = np.sort(weights)
    sums, squares = np.cumsum(np.append(0, values)), np.cumsum(np.append(0, values**2))

    def cost(start: int, stop: int) -> float:
        return squares[stop] - squares[start] - (sums[stop] - sums[start]) ** 2 / (stop - start)

    best = [cost(0, stop) if stop else 0.0 for stop in range(len(values) + 1)]
    for _ in range(count - 1):
        best = [0.0] + [
            min(best[start] + cost(start, stop) if start < stop else best[stop] for start in range(stop + 1))
            for stop in range(1, len(values) + 1)
        ]
    return best[-1]


@pytest.mark.parametrize("start", ["linear", "density", "random"])
def test_k_means_comes_near_the_optimum_of_dynamic_programming(start: Start) -> None:
    random = np.random.default_rng(0)
    weights = np.concatenate((random.normal(size=60), random.normal(size=30) * 0.1 + 3))
    data = Sorted(weights)
    for count in (2, 4, 8):
        levels = fit_levels(data, data.starts(count, start, random))
        optimum = best_error(weights, count)
        assert optimum - 1e-9 <= data.error(levels) <= 2.5 * optimum
        nearest = np.abs(weights[:, None] - levels.values).argmin(axis=1)
        assert np.array_equal(levels.assign(weights), nearest)


def test_separated_clusters_are_found_exactly() -> None:
    weights = np.array([-3.0, -3.1, -2.9, 0.0, 0.1, 5.0, 5.2])
    data = Sorted(weights)
    levels = fit_levels(data, data.starts(3, "linear", np.random.default_rng(0)))
    assert data.error(levels) == pytest.approx(best_error(weights, 3))
    assert levels.values == pytest.approx([-3.0, 0.05, 5.1])


def test_the_error_from_running_sums_is_the_error() -> None:
    weights = np.random.default_rng(1).normal(size=500)
    data = Sorted(weights)
    levels = fit_levels(data, data.starts(7, "density", np.random.default_rng(0)), 0.05)
    direct = np.square(weights - levels.values[levels.assign(weights)]).sum()
    assert data.error(levels) == pytest.approx(direct)


def test_each_weight_takes_the_level_that_is_cheapest_in_error_and_bits() -> None:
    weights = np.random.default_rng(2).normal(size=2_000)
    data = Sorted(weights)
    levels = fit_levels(data, data.starts(16, "linear", np.random.default_rng(0)), 0.1)
    cost = np.square(weights[:, None] - levels.values) + 0.1 * levels.bits
    assert np.array_equal(levels.assign(weights), cost.argmin(axis=1))


def test_dearer_bits_give_fewer_bits_and_more_error() -> None:
    data = Sorted(np.random.default_rng(3).normal(size=20_000))
    entropies, errors = [], []
    for multiplier in (0.0, 0.01, 0.1, 1.0):
        levels = fit_levels(data, data.starts(64, "linear", np.random.default_rng(0)), multiplier)
        counts, _ = data.intervals(levels.borders)
        shares = counts[counts > 0] / counts.sum()
        entropies.append(float(-(shares * np.log2(shares)).sum()))
        errors.append(data.error(levels))
    assert entropies == sorted(entropies, reverse=True)
    assert errors == sorted(errors)
    assert entropies[-1] < 1.0 < 4.0 < entropies[0]


def test_the_best_levels_at_the_price_of_a_step_are_no_worse_than_that_step() -> None:
    """Error plus priced rate, against uniform levels with the same price, near the curve where both meet."""
    weights = np.random.default_rng(4).normal(size=200_000)
    data = Sorted(weights)
    for step in (0.25, 0.5, 1.0):
        levels = fit_levels(data, data.starts(128, "linear", np.random.default_rng(0)), price(step))
        counts, _ = data.intervals(levels.borders)
        shares = counts[counts > 0] / counts.sum()
        rate = float(-(shares * np.log2(shares)).sum())
        found = data.error(levels) / len(weights) + price(step) * rate
        uniform = step**2 / 12 + price(step) * (2.047 - np.log2(step))
        assert found < 1.03 * uniform
        assert abs(rate - (2.047 - np.log2(step))) < 0.35


def test_fixed_levels_stay_where_they_are() -> None:
    table = np.array([-1.0, -0.3, 0.0, 0.3, 1.0])
    weights = np.random.default_rng(5).normal(size=1_000) * 0.4
    free = fixed_levels(table, weights, 0.0)
    assert np.array_equal(free.values, table)
    assert np.array_equal(free.assign(weights), np.abs(weights[:, None] - table).argmin(axis=1))
    dear = fixed_levels(table, weights, 0.5)
    assert set(dear.values) <= set(table)
    assert len(dear.values) < len(table)
