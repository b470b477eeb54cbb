"""The verbs around training: profile, health, rate finder, studies over widths, launch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fairway.core.storage import read_journal

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
SMALL = ["data.max_bytes=200kB", "train.batch=4", "model.context=32", "model.width=32", "model.mixer.heads=4"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write below the current folder unless told otherwise."""
    monkeypatch.chdir(tmp_path)


def last_line(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def test_a_profile_shows_where_a_step_went(fairway, tmp_path: Path) -> None:
    answer = fairway("train", TINY, *SMALL, "budget.steps=10", "--folder", tmp_path / "run", "--profile", "--json")
    assert answer.code == 0, answer.err
    profile = last_line(answer.out)["profile"]
    assert profile["steps"] == 9
    assert profile["parts"]["forward"] > 0
    assert len(profile["operators"]) > 5
    again = fairway("health", tmp_path / "run", "--json")
    assert again.code == 0, again.err
    health = last_line(again.out)
    assert health["step"] == 10
    assert {flow["role"] for flow in health["flows"]} >= {"matrix", "embedding", "vector"}


def test_the_rate_finder_names_a_rate_for_every_group(fairway) -> None:
    answer = fairway("find-rate", TINY, *SMALL, "--steps", "50", "--json")
    assert answer.code == 0, answer.err
    found = last_line(answer.out)
    assert found["rates"]["matrix"] == pytest.approx(0.02 * found["suggestion"])


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("coord-check", ["--steps", "2", "--seeds", "1"]),
        ("transfer", ["--steps", "4", "--factors=-1,1"]),
    ],
)
def test_studies_print_tables_and_write_plots(fairway, tmp_path: Path, verb: str, options: list[str]) -> None:
    command = (verb, TINY, *SMALL, "train.optimizer.kind=adamw", "--widths", "16,32", *options, "-o", tmp_path / "out")
    shown = fairway(*command)
    assert shown.code == 0, shown.err
    assert "mup" in shown.out
    found = last_line(fairway(*command, "--json").out)
    assert found["widths"] == [16, 32]
    assert all(Path(path).read_text().startswith("<svg") for path in found["plots"].values())
    assert "rising whole numbers" in fairway.refused(verb, TINY, "--widths", "32")


def test_launch_refuses_a_time_that_is_none(fairway) -> None:
    assert "--timeout" in fairway.refused("launch", TINY, "--timeout", "soon")


def test_launched_ranks_train_and_a_mistake_ends_them_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fairway", "launch", "--nproc", "2", str(TINY), *SMALL, "budget.steps=4"]
    done = subprocess.run([*command, "--folder", "run"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in read_journal(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert done.stdout.count("Go on with: fairway compress run") == 1
    wrong = [*command, "train.batch=3", "--folder", "wrong"]
    failed = subprocess.run(wrong, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert failed.returncode == 2
    assert "batch of 3 rows" in failed.stderr
    assert "Traceback" not in failed.stderr
