"""One-dimensional k-means against dynamic programming, and the price of bits."""

import numpy as np
import pytest

from fairway.compress.levels import Sorted, Start, fit_levels, fixed_levels, price


def best_error(weights: np.ndarray, count: int) -> float:
    """Least sum of squares with so many levels, by dynamic programming over the sorted weights."""
    values, place = np.sort(weights), np.arange(len(weights) + 1)
    sums, squares = np.cumsum(np.append(0, values)), np.cumsum(np.append(0, values**2))
    length = place - place[:, None]
    cost = squares - squares[:, None] - (sums - sums[:, None]) ** 2 / np.maximum(length, 1)
    cost = np.where(length < 0, np.inf, np.where(length == 0, 0.0, cost))
    best = cost[0]
    for _ in range(count - 1):
        best = (best[:, None] + cost).min(axis=0)
    return float(best[-1])


@pytest.mark.parametrize(
    ("count", "best", "worst"), [(2, 1.001, 1.001), (4, 1.01, 1.1), (8, 1.05, 1.25), (16, 1.3, 1.75)]
)
def test_k_means_comes_near_the_optimum_of_dynamic_programming(count: int, best: float, worst: float) -> None:
    """Rounds end in the nearest local optimum, the further from the best the more levels there are: a bound for the
    best of the three starts, and one for each."""
    for seed in range(3):
        weights = np.random.default_rng(seed).normal(size=1_000)
        data, optimum = Sorted(weights), best_error(weights, count)
        starts: tuple[Start, ...] = ("linear", "density", "random")
        fits = [fit_levels(data, data.starts(count, start, np.random.default_rng(0))) for start in starts]
        ratios = [data.error(levels) / optimum for levels in fits]
        assert 1 - 1e-9 <= min(ratios) <= best, ratios
        assert max(ratios) <= worst, ratios


@pytest.mark.parametrize("start", ["linear", "density", "random"])
@pytest.mark.parametrize("count", [2, 4, 8, 64])
def test_k_means_ends_where_no_round_changes_anything(start: Start, count: int) -> None:
    random = np.random.default_rng(0)
    weights = np.concatenate((random.normal(size=60), random.normal(size=30) * 0.1 + 3))
    data = Sorted(weights)
    levels = fit_levels(data, data.starts(count, start, random), tolerance=0.0)
    codes = levels.assign(weights)
    assert np.array_equal(codes, np.abs(weights[:, None] - levels.values).argmin(axis=1))
    assert np.allclose(levels.values, [weights[codes == code].mean() for code in range(len(levels.values))], rtol=1e-9)


@pytest.mark.parametrize(("start", "most"), [("linear", 1.05), ("density", 1.001)])
def test_the_usual_tolerance_stops_near_the_end(start: Start, most: float) -> None:
    data = Sorted(np.random.default_rng(3).normal(size=150_000))
    first = data.starts(64, start, np.random.default_rng(0))
    usual, end = fit_levels(data, first), fit_levels(data, first, rounds=5_000, tolerance=0.0)
    assert data.error(usual) <= most * data.error(end)


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
