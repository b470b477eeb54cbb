"""The spike guard: it skips spikes and nothing else, and decides alike after a resume."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairway.core.seed import numpy_generator
from fairway.train.guard import Guard, GuardConfig

ON = GuardConfig(sigmas=6)


def clean(count: int, seed: int = 0) -> list[tuple[float, float]]:
    """Losses that fall as in training, with noise, and log-normal gradient norms."""
    random = numpy_generator(seed, "steps")
    noise = random.standard_normal((count, 2))
    return [(3 + 4 / (1 + step / 50) + 0.05 * a, 0.3 * math.exp(0.3 * b)) for step, (a, b) in enumerate(noise)]


def test_no_step_of_ten_thousand_clean_ones_is_skipped() -> None:
    guard = Guard(ON)
    assert all(guard.accepts(loss, norm) for loss, norm in clean(10_000))


@pytest.mark.parametrize("factor", [3.0, 10.0, 1000.0])
@pytest.mark.parametrize("what", ["loss", "norm"])
def test_each_spike_is_skipped_once_and_the_next_step_taken(factor: float, what: str) -> None:
    guard = Guard(ON)
    steps = clean(600)
    factor = factor if what == "loss" else factor**2
    spikes = set(range(200, 600, 40))
    for index, (loss, norm) in enumerate(steps):
        high = factor if index in spikes else 1.0
        taken = guard.accepts(loss * high, norm) if what == "loss" else guard.accepts(loss, norm * high)
        assert taken == (index not in spikes)


def test_a_run_of_bad_batches_costs_as_many_skips_and_a_new_level_is_believed() -> None:
    guard = Guard(ON)
    for loss, norm in clean(300):
        guard.accepts(loss, norm)
    answers = [guard.accepts(50.0, 3.0) for _ in range(40)]
    assert answers == [False] * 20 + [True] * 20
    assert guard.accepts(50.0, 3.0)


def test_nothing_is_skipped_before_a_quarter_of_the_window_is_seen() -> None:
    guard = Guard(GuardConfig(sigmas=6, window=128))
    for loss, norm in clean(31):
        guard.accepts(loss, norm)
    assert guard.accepts(1e6, 1e6)


def test_switched_off_it_accepts_everything_and_remembers_nothing() -> None:
    guard = Guard(GuardConfig())
    assert all(guard.accepts(10.0**power, 1.0) for power in range(100))
    assert not len(guard.state()["seen"])


@given(st.integers(0, 199), st.integers(0, 10))
def test_a_resumed_guard_decides_alike(cut: int, seed: int) -> None:
    steps = [(loss * (8 if index % 37 == 36 else 1), norm) for index, (loss, norm) in enumerate(clean(200, seed))]
    whole, first = Guard(ON), Guard(ON)
    wanted = [whole.accepts(*step) for step in steps]
    before = [first.accepts(*step) for step in steps[:cut]]
    second = Guard(ON)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    assert before + [second.accepts(*step) for step in steps[cut:]] == wanted
    assert False in wanted
