"""Windows: every target once, with the longest context that the stride allows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairway.core.errors import ConfigError
from fairway.serve.window import Policy, batches

POLICIES = st.integers(1, 40).flatmap(lambda length: st.builds(Policy, st.just(length), st.integers(1, length)))


@given(POLICIES, st.integers(0, 200))
def test_every_target_is_scored_exactly_once(policy: Policy, targets: int) -> None:
    scored = [target for window in policy.windows(targets) for target in range(window.first, window.stop)]
    assert scored == list(range(targets))


@given(POLICIES, st.integers(1, 200))
def test_there_are_as_many_windows_as_the_formula_says(policy: Policy, targets: int) -> None:
    beyond = max(0, targets - policy.length)
    assert len(list(policy.windows(targets))) == 1 + -(-beyond // policy.stride)


@given(POLICIES, st.integers(1, 200))
def test_a_target_has_the_context_that_the_stride_allows(policy: Policy, targets: int) -> None:
    for window in policy.windows(targets):
        for target in range(window.first, window.stop):
            context = target + 1 - window.start
            assert context <= policy.length
            assert context >= min(target + 1, policy.length - policy.stride + 1)


@given(POLICIES, st.integers(1, 200))
def test_the_window_of_one_target_is_the_one_that_scores_it(policy: Policy, targets: int) -> None:
    for window in policy.windows(targets):
        for target in range(window.first, window.stop):
            one = policy.window(target)
            assert (one.start, one.first, one.stop) == (window.start, window.first, target + 1)


def test_a_stride_of_the_window_is_the_plain_evaluation() -> None:
    windows = list(Policy(4, 4).windows(10))
    assert [(window.start, window.first, window.stop) for window in windows] == [(0, 0, 4), (4, 4, 8), (8, 8, 10)]


def test_a_stride_of_one_keeps_the_window_full() -> None:
    assert all(window.stop - window.start == 4 for window in Policy(4, 1).windows(10))


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_batches_hold_every_window_of_every_sequence_once(batch: int) -> None:
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 50, size) for size in (2, 90, 1, 13, 12, 14, 90)]
    policy = Policy(12, 5)
    seen = [row for part in batches(sequences, policy, batch) for row in part.rows]
    expected = [(index, window) for index, ids in enumerate(sequences) for window in policy.windows(len(ids) - 1)]
    assert sorted(seen, key=str) == sorted(expected, key=str)
    for part in batches(sequences, policy, batch):
        assert len(part.rows) <= batch
        for row, (index, window) in zip(part.inputs_BT.tolist(), part.rows, strict=True):
            assert window.first - window.start == part.first
            assert row[: window.stop - window.start] == sequences[index][window.start : window.stop].tolist()


@pytest.mark.parametrize(("length", "stride"), [(4, 0), (4, 5), (0, 0), (4, -1)])
def test_a_stride_that_leaves_gaps_is_refused(length: int, stride: int) -> None:
    with pytest.raises(ConfigError, match="stride"):
        Policy(length, stride)
