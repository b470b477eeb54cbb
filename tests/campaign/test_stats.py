"""Small statistics beside scipy's, and the cases that a formula alone would get wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from fairway.campaign.stats import compare, holm, incomplete_beta, pooled_sigma, student_quantile, two_sided

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


@given(VALUES, VALUES)
def test_welch_agrees_with_scipy(first: list[float], second: list[float]) -> None:
    if min(np.std(first), np.std(second)) < 1e-6:
        return
    ours, theirs = compare(first, second), reference.ttest_ind(second, first, equal_var=False)
    assert ours.t == pytest.approx(theirs.statistic, rel=1e-9, abs=1e-12)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-8, abs=1e-12)
    assert ours.degrees == pytest.approx(theirs.df, rel=1e-9)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-7, abs=1e-9)


@given(st.floats(0.05, 500), st.floats(0.05, 500), st.floats(0, 1))
def test_the_incomplete_beta_function_agrees_with_scipy(a: float, b: float, x: float) -> None:
    from scipy.special import betainc

    assert incomplete_beta(a, b, x) == pytest.approx(betainc(a, b, x), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("degrees", [1.0, 2.7, 30.0, 1e4])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.9995])
def test_quantiles_and_tails_are_each_other_s_inverse(probability: float, degrees: float) -> None:
    t = student_quantile(probability, degrees)
    assert t == pytest.approx(reference.t.ppf(probability, degrees), rel=1e-7, abs=1e-9)
    assert two_sided(t, degrees) == pytest.approx(2 * (1 - probability), rel=1e-6, abs=1e-9)


def test_the_pooled_sigma_weighs_arms_by_their_degrees_of_freedom() -> None:
    arms = [[1.0, 3.0], [10.0, 10.0, 10.0, 16.0], [5.0]]
    assert pooled_sigma(arms) == pytest.approx(math.sqrt((1 * 2.0 + 3 * 9.0) / 4))
    assert math.isnan(pooled_sigma([[1.0], [2.0]]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_agrees_with_its_definition(values: list[float]) -> None:
    ranked = sorted(values)
    factors = range(len(values), 0, -1)
    steps = np.maximum.accumulate([min(1.0, p * factor) for p, factor in zip(ranked, factors, strict=True)])
    corrected = holm({str(index): p for index, p in enumerate(values)})
    assert list(corrected) == [str(index) for index in range(len(values))]
    assert sorted(corrected.values()) == pytest.approx(steps.tolist())


def test_holm_is_milder_than_bonferroni_and_stricter_than_nothing() -> None:
    corrected = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert corrected == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})


def test_runs_that_scatter_more_than_they_differ_stay_unresolved() -> None:
    near, far = compare([1.0, 1.2, 1.4], [1.1, 1.3, 1.5]), compare([1.0, 1.01, 1.02], [1.1, 1.11, 1.12])
    assert (near.verdict(), far.verdict()) == ("unresolved", "resolved")
    assert far.verdict(p=0.2) == "unresolved"
    assert far.effect == pytest.approx(0.1)


def test_arms_without_any_scatter_are_told_apart_by_their_values_alone() -> None:
    assert compare([1.0, 1.0], [1.0, 1.0]).p == 1.0
    assert compare([1.0, 1.0], [2.0, 2.0]).p == 0.0


@pytest.mark.parametrize("bad", [[1.0], [], [1.0, math.nan], [1.0, math.inf]])
def test_a_single_run_or_a_failed_one_cannot_be_tested(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="two finite values"):
        compare(bad, [1.0, 2.0])
