"""The table of goals: what counts as a peer, and what does not count at all."""

import importlib
from typing import Any

import pytest

from law.house import ROOT

OPERATION = {
    "seconds": {"ours": 1.0, "torch as installed": 4.0, "torch with allocator": 3.0, "compiled torch": 0.5},
    "right": {"ours": True, "torch as installed": True, "torch with allocator": True, "compiled torch": False},
    "least_seconds": 0.6,
}
RACE = {
    "rates": {"fairway-adamw": 8.0, "fairway-adamw without native kernels": 3.0, "gpt": 2.0, "gpt with allocator": 4.0},
    "measured": {"fairway-adamw": {"facts": {"flops": 5.0}}},
    "bf16_flops": 60.0,
}


@pytest.fixture
def goals(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("goals")


def test_a_peer_with_a_wrong_result_is_no_peer(goals: Any) -> None:
    found = goals.operation(OPERATION)
    assert found is not None
    assert (found.installed, found.best, found.allowed) == (4.0, 3.0, pytest.approx(5.0))


def test_an_operation_with_a_wrong_result_has_no_ratio(goals: Any) -> None:
    assert goals.operation(OPERATION | {"right": OPERATION["right"] | {"ours": False}}) is None


def test_a_race_tells_the_peer_as_installed_from_the_peer_at_its_best(goals: Any) -> None:
    found = goals.race(RACE, "fairway", "")
    assert (found.installed, found.best, found.allowed) == (4.0, 2.0, 3.0)


def test_the_table_has_a_line_for_every_goal_that_was_measured(goals: Any) -> None:
    text = "\n".join(goals.section({"train_speed_fixed_1t": RACE}))
    lines = [line for line in text.splitlines() if line.startswith("| training step")]
    assert lines == ["| training step, 2.9 M parameters | plain GPT, Llama | 2.2 | 2.8 | 4 | 2 | 3 |"]
