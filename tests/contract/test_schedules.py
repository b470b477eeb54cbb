"""What every schedule promises, for each technique found in the slot, and proof that each check can fail."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.core.config import Slot
from fairway.core.errors import ConfigError
from fairway.optim.parts import ScheduleConfig

SLOT = Slot("fairway.optim.schedule", "trapezoid")
KINDS = SLOT.kinds()
POINTS = [index / 2000 for index in range(2001)]

Factor = Callable[[float], float]


def config_of(kind: str, **settings: object) -> ScheduleConfig:
    config = SLOT.config(kind).read({"kind": kind, **settings})
    assert isinstance(config, ScheduleConfig)
    return config


def check_range(factor: Factor) -> None:
    assert all(0.0 <= factor(point) <= 1.0 for point in POINTS)
    assert max(factor(point) for point in POINTS) == pytest.approx(1.0, abs=1e-9)


def check_first_step_counts(factor: Factor) -> None:
    assert factor(0.0) > 0.0


def check_continuous(factor: Factor) -> None:
    assert max(abs(factor(b) - factor(a)) for a, b in pairwise(POINTS)) < 0.05


def check_never_rises_again(factor: Factor) -> None:
    series = [factor(point) for point in POINTS]
    top = series.index(max(series))
    assert all(b <= a + 1e-12 for a, b in pairwise(series[top:]))
    assert all(b >= a - 1e-12 for a, b in pairwise(series[: top + 1]))


def check_clamped(factor: Factor) -> None:
    assert factor(-0.5) == factor(0.0)
    assert factor(1.5) == factor(1.0)


CHECKS = [check_range, check_first_step_counts, check_continuous, check_never_rises_again, check_clamped]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_schedule_keeps_the_contract(kind: str, check: Callable[[Factor], None]) -> None:
    check(config_of(kind).factor)
    check(config_of(kind, warmup=0.3, start=0.2).factor)


FAULTS: list[tuple[Factor, Callable[[Factor], None]]] = [
    (lambda progress: 1.5 - progress, check_range),
    (lambda progress: progress, check_first_step_counts),
    (lambda progress: 1.0 if progress < 0.5 else 0.2, check_continuous),
    (lambda progress: abs(1.0 - 2.0 * progress), check_never_rises_again),
    (lambda progress: 1.0 - progress, check_clamped),
]


@pytest.mark.parametrize(("faulty", "check"), FAULTS, ids=lambda item: item.__name__)
def test_each_check_catches_its_planted_fault(faulty: Factor, check: Callable[[Factor], None]) -> None:
    with pytest.raises(AssertionError):
        check(faulty)


@pytest.mark.parametrize("kind", KINDS)
@given(
    warmup=st.floats(0.001, 0.4),
    floor=st.floats(0.0, 1.0),
    progress=st.floats(0.0, 1.0),
    start=st.floats(0.0, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_factors_stay_between_the_floor_and_one_whatever_the_settings(
    kind: str, warmup: float, floor: float, progress: float, start: float
) -> None:
    factor = config_of(kind, warmup=warmup, floor=floor, start=start).factor(progress)
    assert min(floor, start) - 1e-12 <= factor <= 1.0 + 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_nonsense_settings_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError):
        config_of(kind, warmup=1.5)
    with pytest.raises(ConfigError):
        config_of(kind, floor=-0.1)
