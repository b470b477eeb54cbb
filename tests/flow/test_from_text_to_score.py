"""The whole path through the command line: a folder of text becomes a scored artifact that writes text."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CAP = 30_000
SETTINGS = (
    "data.source.kind=text",
    "data.validation_fraction=0.2",
    "model.width=32",
    "model.depth=1",
    "model.mixer.heads=2",
    "model.context=32",
    "train.batch=4",
    "budget.steps=40",
    "sample.tokens=30",
)


def fairway(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fairway", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Done:
    """A finished run."""

    home: Path
    printed: str
    summary: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.home / "run"


def write_text(home: Path) -> None:
    """Sixty small documents that a small model can learn something from."""
    folder = home / "notes"
    folder.mkdir()
    for number in range(60):
        lines = [f"note {number}, line {line}: the tide of the {number % 7}th day rises" for line in range(30)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines), encoding="utf-8")


def run_in(home: Path) -> subprocess.CompletedProcess[str]:
    recipe = ROOT / "recipes" / "tiny.yaml"
    path = f"data.source.path={home / 'notes'}"
    return fairway("run", recipe, *SETTINGS, path, "budget.bytes=30kB", "--folder", home / "run", "--json", cwd=home)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    home = tmp_path_factory.mktemp("flow")
    write_text(home)
    ended = run_in(home)
    return Done(home, ended.stdout, last_line(ended))


def test_the_run_ends_with_the_line_that_machines_read(done: Done) -> None:
    promised = {"run", "artifact", "bits_per_byte", "bytes", "bytes_cap", "seconds_train", "seconds_total"}
    assert promised <= set(done.summary)
    assert Path(done.summary["artifact"]).resolve() == (done.folder / "model.fwy").resolve()
    assert done.summary["seconds_train"] <= done.summary["seconds_total"]


def test_the_artifact_fits_the_cap_to_the_byte(done: Done) -> None:
    size = (done.folder / "model.fwy").stat().st_size
    assert size == done.summary["bytes"]
    assert size <= done.summary["bytes_cap"] == CAP


def test_the_model_learned_something_from_the_text(done: Done) -> None:
    assert 0.05 < done.summary["bits_per_byte"] < 6.0


def test_the_run_prints_the_sample_that_the_artifact_wrote(done: Done) -> None:
    sample = (done.folder / "sample.txt").read_text(encoding="utf-8")
    assert sample.strip()
    assert sample.strip() in done.printed


def test_the_folder_describes_itself(done: Done) -> None:
    names = {path.name for path in done.folder.iterdir()}
    assert {"recipe.yaml", "data", "metrics.jsonl", "model.fwy", "score.json", "ledger.json", "report.html"} <= names
    assert not list(done.folder.rglob("*.tmp"))
    report = (done.folder / "report.html").read_text(encoding="utf-8")
    assert f"{done.summary['bits_per_byte']:.4f}" in report
    assert "http://" not in report.replace("http://www.w3.org", "")


def test_the_score_is_that_of_the_file_whoever_measures_it(done: Done, tmp_path: Path) -> None:
    again = last_line(fairway("evaluate", done.folder, "--json", cwd=tmp_path))
    assert again["bits_per_byte"] == pytest.approx(done.summary["bits_per_byte"], rel=1e-6)


def test_the_file_alone_is_enough_to_score_and_to_write(done: Done, tmp_path: Path) -> None:
    alone = tmp_path / "moved.fwy"
    alone.write_bytes((done.folder / "model.fwy").read_bytes())
    text = done.home / "notes" / "07.txt"
    score = last_line(fairway("evaluate", alone, "--text", text, "--json", cwd=tmp_path))
    assert score["bytes"] == text.stat().st_size
    options = ("--prompt", "note 7", "--tokens", 20, "--temperature", 0)
    first = fairway("generate", alone, *options, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout == fairway("generate", alone, *options, cwd=tmp_path).stdout
    assert first.stdout.strip()


def test_the_same_command_finds_its_results_and_repeats_none(done: Done) -> None:
    artifact = hashlib.sha256((done.folder / "model.fwy").read_bytes()).hexdigest()
    again = last_line(run_in(done.home))
    assert again["bits_per_byte"] == done.summary["bits_per_byte"]
    assert again["steps"] == done.summary["steps"] == 40
    assert hashlib.sha256((done.folder / "model.fwy").read_bytes()).hexdigest() == artifact
    steps = [json.loads(line).get("step") for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    trained = [step for step in steps if step is not None]
    assert len(trained) == len(set(trained))


@pytest.mark.slow
def test_two_runs_of_one_recipe_write_the_same_bytes(done: Done, tmp_path: Path) -> None:
    """The text lies elsewhere, the recipe's path differs, and so only the weights and the score must agree."""
    write_text(tmp_path)
    again = last_line(run_in(tmp_path))
    assert again["bits_per_byte"] == done.summary["bits_per_byte"]


def test_another_recipe_may_not_take_the_folder(done: Done) -> None:
    arguments = ("run", ROOT / "recipes" / "tiny.yaml", "model.width=40", "--folder", done.folder)
    refused = fairway(*arguments, cwd=done.home)
    assert refused.returncode == 2
    assert "width" in refused.stderr
    assert "Traceback" not in refused.stderr
