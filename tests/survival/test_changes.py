"""What a run depends on may not change under it: refused with the difference, or allowed and on record."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from fairway.core import storage
from fairway.core.storage import read_journal
from survival.trainers import Zygote, latest, recipe, training

STEPS = 12


@pytest.fixture(scope="module")
def stopped(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a run that was killed on its way; tests copy it."""
    home = tmp_path_factory.mktemp("stopped")
    arguments = training(recipe(home, steps=STEPS), home / "run")
    assert zygote.run(*arguments, said=home / "said", die_at=150).code == -signal.SIGKILL
    assert 0 < done(home / "run") < STEPS
    return home


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of that run, with its recipe beside it."""
    shutil.copytree(stopped / "run", tmp_path / "run")
    shutil.copy(stopped / "recipe.yaml", tmp_path / "recipe.yaml")
    return tmp_path / "run"


def done(folder: Path) -> int:
    """Steps of the checkpoint that a resume would take."""
    found = latest(folder)
    return 0 if found is None else found.step


def refusal(zygote: Zygote, *arguments: object, said: Path, **settings: object) -> str:
    ended = zygote.run(*arguments, said=said, **settings)
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said
    return ended.said.splitlines()[-1]


def test_another_recipe_is_refused_with_the_setting_named(zygote: Zygote, run: Path, tmp_path: Path) -> None:
    said = refusal(zygote, *training(tmp_path / "recipe.yaml", run, "train.clip=0.5"), said=tmp_path / "said")
    assert "train.clip 1.0 -> 0.5" in said
    assert "--allow-changes" in said


def test_a_recipe_edited_in_the_folder_is_refused_with_the_setting_named(
    zygote: Zygote, run: Path, tmp_path: Path
) -> None:
    plain = yaml.safe_load((run / "recipe.yaml").read_text())
    plain["train"]["batch"] = 2
    (run / "recipe.yaml").write_text(yaml.safe_dump(plain))
    assert "recipe.train.batch was 4, is 2" in refusal(zygote, "train", run, said=tmp_path / "said")


def test_a_text_that_changed_behind_the_same_recipe_is_refused(zygote: Zygote, run: Path, tmp_path: Path) -> None:
    source = Path(yaml.safe_load((tmp_path / "recipe.yaml").read_text())["data"]["source"]["path"])
    kept = (source / "0.txt").read_bytes()
    try:
        (source / "0.txt").write_bytes(kept + b" and more")
        shutil.rmtree(run / "data")
        assert "data was " in refusal(zygote, "train", run, said=tmp_path / "said")
    finally:
        (source / "0.txt").write_bytes(kept)


def test_another_tokenizer_code_or_torch_is_refused(zygote: Zygote, run: Path, tmp_path: Path) -> None:
    """By facts of the checkpoint that say what another machine or version would have said."""
    for fact in ("tokenizer", "code", "torch"):
        folder = tmp_path / fact
        shutil.copytree(run, folder)
        rewrite_fact(folder, fact, "other")
        assert f"{fact} was 'other'" in refusal(zygote, "train", folder, said=tmp_path / "said")


def rewrite_fact(folder: Path, name: str, value: object) -> None:
    for path in (folder / "checkpoints").glob("step-*"):
        record = json.loads((path / storage.MANIFEST).read_text())
        record["facts"][name] = value
        storage.seal(path, {"step": record["step"], "facts": record["facts"]})


def test_another_number_of_threads_is_told(zygote: Zygote, run: Path, tmp_path: Path) -> None:
    """The rows stay the same, so the run may go on; that it is no longer the same bit for bit is said."""
    rewrite_fact(run, "threads", 64)
    told = zygote.run("train", run, said=tmp_path / "said")
    assert told.code == 0, told.said
    assert "not bit for bit: threads was 64, is 1" in told.said


def test_an_allowed_change_is_recorded_and_the_run_goes_on(zygote: Zygote, run: Path, tmp_path: Path) -> None:
    step = done(run)
    arguments = training(tmp_path / "recipe.yaml", run, "train.clip=0.5", f"budget.steps={STEPS + 4}")
    allowed = zygote.run(*arguments, "--allow-changes", said=tmp_path / "said")
    assert allowed.code == 0, allowed.said
    assert "recipe.train.clip 1.0 -> 0.5" in allowed.said
    records = read_journal(run / "changes.jsonl")
    assert records == [
        {"step": step, "changed": {"recipe.budget.steps": [STEPS, STEPS + 4], "recipe.train.clip": [1.0, 0.5]}}
    ]
    assert [row["step"] for row in read_journal(run / "metrics.jsonl")] == list(range(1, STEPS + 5))
    again = zygote.run("train", run, said=tmp_path / "again")
    assert again.code == 0, again.said


def test_a_change_that_the_weights_cannot_follow_is_refused_even_then(
    zygote: Zygote, run: Path, tmp_path: Path
) -> None:
    for change in ("model.width=24", "train.optimizer.kind=adamw"):
        arguments = training(tmp_path / "recipe.yaml", run, change)
        said = refusal(zygote, *arguments, "--allow-changes", said=tmp_path / "said")
        assert f"cannot go on with another recipe.{change.partition('=')[0]}" in said
    assert not (run / "changes.jsonl").exists()


def test_a_finished_run_may_be_opened_by_other_code(zygote: Zygote, run: Path, tmp_path: Path) -> None:
    assert zygote.run("train", run, said=tmp_path / "said").code == 0
    rewrite_fact(run, "code", "older")
    again = zygote.run("train", run, said=tmp_path / "again")
    assert again.code == 0, again.said
    assert len(read_journal(run / "metrics.jsonl")) == STEPS
