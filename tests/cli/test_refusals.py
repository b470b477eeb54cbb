import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes" / "tiny.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def artifacts(folder: Path) -> list[str]:
    """Files that a refused command may not leave: anything but a recipe and a lock."""
    harmless = {"recipe.yaml", ".lock"}
    return [path.name for path in folder.rglob("*") if path.is_file() and path.name not in harmless]


@pytest.mark.parametrize("verb", ["run", "plan", "prepare", "train"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["model.widht=64"], ["widht", '"width"']),
        (["model.mixer.kind=atention"], ["atention", "attention"]),
        (["budget.seconds=-5"], ["budget.seconds", "-5"]),
        (["--time", "-5"], ["--time", "-5", "3m"]),
        (["--bytes", "many"], ["--bytes", "many", "500kB"]),
        (["model.width"], ["model.width", "section.field=value"]),
        (["model.mixer.heads=7"], ["7 heads", "64"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_work(verb, arguments, told, fairway, tmp_path: Path):
    message = fairway.refused(verb, TINY, *arguments)
    for word in told:
        assert word in message, message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["run", "plan", "prepare", "train"])
def test_a_missing_recipe_is_named(verb, fairway, tmp_path: Path):
    assert "nowhere.yaml" in fairway.refused(verb, "nowhere.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["compress", "evaluate", "generate", "inspect"])
def test_a_missing_artifact_or_run_is_named(verb, fairway):
    extra = ["--text", str(TINY)] if verb == "evaluate" else []
    assert "nowhere.fwy" in fairway.refused(verb, "nowhere.fwy", *extra)


@pytest.mark.parametrize("verb", ["evaluate", "generate", "inspect"])
def test_a_foreign_file_is_no_artifact(verb, fairway, tmp_path: Path):
    foreign = tmp_path / "photo.fwy"
    foreign.write_bytes(bytes(range(256)) * 9)
    extra = ["--text", str(TINY)] if verb == "evaluate" else []
    assert "photo.fwy" in fairway.refused(verb, foreign, *extra)


def test_a_damaged_artifact_is_refused(fairway, tiny_run: Path, tmp_path: Path):
    damaged = tmp_path / "damaged.fwy"
    data = bytearray((tiny_run / "model.fwy").read_bytes())
    data[len(data) // 2] ^= 4
    damaged.write_bytes(data)
    assert "SHA-256" in fairway.refused("generate", damaged)


@pytest.mark.parametrize("verb", ["run", "plan", "train"])
def test_a_cap_of_ten_bytes_is_refused_before_anything_is_done(verb, fairway, tmp_path: Path):
    assert "10 B" in fairway.refused(verb, TINY, "budget.bytes=10")
    assert "10 B" in fairway.refused(verb, TINY, "--bytes", "10")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_corpus_is_refused(fairway, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "nothing.txt").write_bytes(b"")
    message = fairway.refused("prepare", TINY, "data.source.kind=text", f"data.source.path={tmp_path / 'empty'}")
    assert "empty" in message
    assert artifacts(tmp_path / "runs") == []


def test_a_corrupted_shard_is_named(fairway, tiny_run: Path, tmp_path: Path):
    copy = Path(shutil.copytree(tiny_run, tmp_path / "copy"))
    shard = next(copy.glob("data/*train*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert shard.name in fairway.refused("train", copy)


def test_a_run_keeps_its_recipe(fairway, tiny_run: Path, tmp_path: Path):
    copy = Path(shutil.copytree(tiny_run, tmp_path / "copy"))
    assert "recipe.yaml" in fairway.refused("run", copy, "model.width=64")
    assert "model.width" in fairway.refused("run", TINY, "model.width=40", "--folder", copy)


def test_a_folder_that_is_no_run_is_refused(fairway, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    for verb in ("run", "train", "compress"):
        assert "recipe.yaml" in fairway.refused(verb, "photos")


def test_an_unknown_slot_is_refused_with_the_nearest_name(fairway):
    message = fairway.refused("techniques", "model.mixr")
    assert '"model.mixer"' in message


def test_wrong_sampling_is_refused(fairway, tiny_run: Path):
    assert "temperature" in fairway.refused("generate", tiny_run, "--temperature", "-1")
    assert "-3 tokens" in fairway.refused("generate", tiny_run, "--tokens", "-3")


@pytest.mark.parametrize("stop", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_run_saves_says_how_to_go_on_and_goes_on(stop, tmp_path: Path):
    folder = tmp_path / "stopped"
    overrides = ["model.width=32", "budget.bytes=12kB", "budget.steps=100000", "data.max_bytes=100kB"]
    command = [sys.executable, "-m", "fairway", "train", str(TINY), *overrides, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and _steps(folder) < 3:
        time.sleep(0.05)
    process.send_signal(stop)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert f"fairway train {folder}" in told
    assert "Traceback" not in told
    checkpoints = [path.name for path in (folder / "checkpoints").iterdir()]
    assert len(checkpoints) == 1
    assert int(checkpoints[0].removeprefix("step-")) == _steps(folder) >= 3


def _steps(folder: Path) -> int:
    journal = folder / "metrics.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0
