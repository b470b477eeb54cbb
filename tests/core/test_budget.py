"""Bytes, seconds and the ledger."""

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairway.core.budget import Budget, Ledger, parse_bytes, parse_seconds, show_bytes, show_seconds
from fairway.core.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("500kB", 500_000),
        ("500 KB", 500_000),
        ("1.5 MB", 1_500_000),
        ("16m", 16_000_000),
        ("2MiB", 2 * 2**20),
        ("1GiB", 2**30),
        ("1e6", 1_000_000),
        ("12345", 12_345),
        (12345, 12_345),
    ],
)
def test_bytes_are_read_as_people_write_them(written: Any, count: int) -> None:
    assert parse_bytes(written) == count


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90.0), ("3m", 180.0), ("1.5 min", 90.0), ("1h", 3600.0), ("0.5", 0.5), (7, 7.0)],
)
def test_seconds_are_read_as_people_write_them(written: Any, seconds: float) -> None:
    assert parse_seconds(written) == seconds


@pytest.mark.parametrize(
    "written", ["", "-3m", "3 parsecs", "many", True, None, "nan", "inf", math.inf, math.nan, "9e999"]
)
def test_what_is_no_amount_is_refused_with_what_would_work(written: Any) -> None:
    for parse in (parse_bytes, parse_seconds):
        with pytest.raises(ValueError, match="would work"):
            parse(written)


@given(st.integers(min_value=0, max_value=10**15))
def test_a_plain_number_of_bytes_is_itself(count: int) -> None:
    assert parse_bytes(count) == parse_bytes(str(count)) == count


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bytes", 0),
        ("bytes", "-5kB"),
        ("bytes", 0.2),
        ("seconds", 0),
        ("seconds", -1.0),
        ("seconds", math.inf),
        ("steps", 0),
    ],
)
def test_a_budget_that_allows_nothing_or_everything_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        Budget.read({field: value})


def test_a_budget_keeps_units_out_of_its_fingerprint() -> None:
    assert (
        Budget.read({"bytes": "1MB", "seconds": "2m"}).fingerprint() == Budget(bytes=10**6, seconds=120.0).fingerprint()
    )


@pytest.mark.parametrize(
    ("count", "shown"), [(12, "12 B"), (499_998, "500 kB"), (1_500_000, "1.5 MB"), (2.5e9, "2.5 GB")]
)
def test_bytes_are_shown_in_decimal_units(count: float, shown: str) -> None:
    assert show_bytes(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.123, "0.12 s"), (37.2, "37 s"), (185, "3 min 05 s"), (3660, "1 h 01 min")]
)
def test_seconds_are_shown_as_a_short_reading(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown


def test_the_ledger_accounts_for_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 5.0, 7.0, 10.0, 10.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    ledger = Ledger()
    with ledger.phase("train"):
        pass
    with ledger.phase("train"):
        pass
    entries = ledger.entries()
    assert entries == {"train": 5.0, "other": 5.0}
    assert sum(entries.values()) == ledger.total()


def test_a_phase_that_fails_is_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    ledger = Ledger()
    with pytest.raises(RuntimeError), ledger.phase("train"):
        raise RuntimeError
    assert ledger.seconds == {"train": 2.0}


def test_a_resumed_ledger_goes_on_from_what_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert Ledger({"train": 40.0}).total() == 43.0
