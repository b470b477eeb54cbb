"""The search for the cheapest path: all paths tried one by one, and the native kernel."""

import itertools

import numpy as np
import pytest

from fairway.artifact.packing.trellis import transitions
from fairway.core.native import level
from fairway.ops.trellis import naive, native
from fairway.ops.trellis.naive import Numbers, Whole


def drawn(count: int, seed: int = 0) -> tuple[Numbers, Numbers]:
    random = np.random.default_rng(seed)
    return random.standard_normal(count) * 3, random.random(count) * 0.1


def cost(values: Whole, target: Numbers, price: Numbers) -> float:
    return float(((target - values) ** 2 + price * values.astype(float) ** 2).sum())


def follows(values: Whole, following: Whole) -> bool:
    """Whether the values are those of one path from state 0."""
    state = 0
    for value in values.tolist():
        if value & 1 != state & 1:
            return False
        state = int(following[state, (value >> 1) & 1])
    return True


@pytest.mark.parametrize("memory", [2, 3, 5])
@pytest.mark.parametrize("dear", [0.0, 1.0, 10.0])
def test_no_other_path_is_cheaper(memory: int, dear: float) -> None:
    """All branches with all values of each, tried one by one; at no price, a price, and one that outweighs errors."""
    target, price = drawn(7, memory)
    price = price * dear
    following = transitions(memory)
    best = np.inf
    for branches in itertools.product((0, 1), repeat=len(target)):
        state, total = 0, 0.0
        for t, p, branch in zip(target, price, branches, strict=True):
            values = np.arange(-40, 41) * 4 + (state & 1) + 2 * branch
            total += float(((t - values) ** 2 + p * values**2).min())
            state = int(following[state, branch])
        best = min(best, total)
    found = naive.search(target, price, following)
    assert follows(found, following)
    assert cost(found, target, price) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("memory", range(2, 9))
@pytest.mark.parametrize("count", [1, 2, 63, 500])
def test_the_native_search_is_the_definition(memory: int, count: int) -> None:
    if level() is None:
        pytest.skip("the native library was not built")
    target, price = drawn(count, memory)
    fast = native.search(target, price, transitions(memory))
    slow = naive.search(target, price, transitions(memory))
    assert follows(fast, transitions(memory))
    assert cost(fast, target, price) == pytest.approx(cost(slow, target, price), rel=1e-12)
    assert (fast == slow).mean() > 0.99


def test_without_targets_there_is_no_path() -> None:
    empty = np.zeros(0)
    assert native.search(empty, empty, transitions(3)).size == 0


@pytest.mark.parametrize("memory", range(2, 9))
def test_every_state_has_two_ways_in_and_each_way_out_another_coset(memory: int) -> None:
    following = transitions(memory)
    assert (np.bincount(following.reshape(-1)) == 2).all()
    assert (following[:, 0] != following[:, 1]).all()
    leads = naive.predecessors(following)
    assert all((following[leads[state] >> 1, leads[state] & 1] == state).all() for state in range(len(following)))
