"""Distillation through the command line: teacher, student and the student from scratch, and what is refused."""

import json
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import fairway
from fairway.cli.console.application import invoke
from fairway.core.storage import read_json
from laws.llama import written

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "data.source.kind=text",
    "data.tokenizer=byte",
    "data.validation_fraction=0.2",
    "model.width=32",
    "model.embedding=token",
    "model.depth=1",
    "model.mixer.heads=2",
    "model.context=32",
    "train.batch=4",
    "train.precision=fp32",
    "budget.steps=12",
    "budget.bytes=30kB",
    "sample.tokens=10",
    "distill.top_k=16",
    "distill.teacher.steps=10",
    "distill.teacher.model.width=48",
    "distill.teacher.model.embedding=token",
    "distill.teacher.model.context=32",
    "distill.teacher.model.depth=1",
    "distill.teacher.train.batch=4",
    "distill.teacher.train.precision=fp32",
)


def run_in(home: Path, *more: object) -> int:
    recipe, text = ROOT / "recipes" / "distill.yaml", f"data.source.path={home / 'notes'}"
    with chdir(home):
        return invoke(["run", str(recipe), *SETTINGS, text, *map(str, more)])


@dataclass(frozen=True)
class Done:
    """A finished run."""

    home: Path
    printed: str
    summary: dict[str, Any]


@pytest.fixture(scope="module", name="done")
def _done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    home = tmp_path_factory.mktemp("distill")
    (home / "notes").mkdir()
    for number in range(60):
        lines = [f"note {number}, line {line}: the tide of the {number % 7}th day rises" for line in range(30)]
        (home / "notes" / f"{number:02d}.txt").write_text("\n".join(lines), encoding="utf-8")
    printed = StringIO()
    with redirect_stdout(printed):
        assert run_in(home, "--folder", home / "run") == 0
    return Done(home, printed.getvalue(), read_json(home / "run" / "summary.json"))


def test_a_run_ends_with_both_scores_and_where_they_come_from(done: Done) -> None:
    scratch = read_json(done.home / "run" / "scratch" / "summary.json")
    assert done.summary["scratch_bits_per_byte"] == scratch["bits_per_byte"]
    assert 0 < done.summary["bits_per_byte"] < 8
    assert done.summary["teacher_seconds_train"] > 0
    assert scratch["steps"] > done.summary["steps"] + 10
    assert scratch["parameters"] == done.summary["parameters"]
    assert scratch["bytes"] <= scratch["bytes_cap"] == done.summary["bytes_cap"]
    assert f"{scratch['bits_per_byte']:.4f} bits per byte" in done.printed
    assert f"{done.summary['bits_per_byte']:.4f}" in done.printed


def test_the_same_command_again_trains_nothing_again(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.home.rglob("*.safetensors")}
    assert invoke(["run", str(done.home / "run"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("bits_per_byte", "scratch_bits_per_byte", "teacher_seconds_train"):
        assert summary[name] == done.summary[name]
    assert {path: path.stat().st_mtime_ns for path in done.home.rglob("*.safetensors")} == before


def test_an_artifact_teaches_a_student_and_one_of_another_vocabulary_is_refused(
    done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = done.home / "run" / "scratch" / "model.fwy"
    assert (
        run_in(done.home, f"distill.teacher.path={artifact}", "distill.baseline=false", "-o", done.home / "second") == 0
    )
    summary = read_json(done.home / "second" / "summary.json")
    assert summary["scratch_bits_per_byte"] is None
    assert summary["teacher_seconds_train"] > 0
    other = ("data.tokenizer.kind=bpe", "data.tokenizer.vocabulary=300", f"distill.teacher.path={artifact}")
    assert run_in(done.home, *other, "-o", done.home / "third") == 2
    assert "speaks another vocabulary: it has 257 ids and the student" in capsys.readouterr().err
    assert run_in(done.home, "distill.teacher.path=nowhere.fwy", "-o", done.home / "fourth") == 2
    assert "There is no teacher nowhere.fwy" in capsys.readouterr().err


def test_a_llama_of_transformers_teaches_a_student_with_its_tokenizer(done: Done) -> None:
    written(done.home / "llama")
    settings = (
        "data.tokenizer.kind=pretrained",
        f"data.tokenizer.path={done.home / 'llama' / 'tokenizer.json'}",
        f"distill.teacher.path={done.home / 'llama'}",
        "distill.baseline=false",
        "budget.bytes=60kB",
    )
    assert run_in(done.home, *settings, "-o", done.home / "fifth") == 0
    summary = read_json(done.home / "fifth" / "summary.json")
    assert 0 < summary["bits_per_byte"] < 9
    assert summary["teacher_seconds_train"] is None


@pytest.mark.parametrize(
    ("settings", "zeros"),
    [
        (("compress.prune.kind=magnitude", "compress.prune.sparsity=0.5"), 0.45),
        (("compress.prune.kind=imp", "compress.prune.sparsity=0.5"), 0.45),
        (("compress.quantize.kind=qat",), 0.0),
    ],
    ids=["pruned", "pruned while it learns", "quantised while it learns"],
)
def test_students_are_pruned_and_quantised(done: Done, settings: tuple[str, ...], zeros: float) -> None:
    folder = done.home / settings[0]
    teacher = f"distill.teacher.path={done.home / 'run' / 'scratch' / 'model.fwy'}"
    assert run_in(done.home, teacher, "distill.baseline=false", *settings, "-o", folder) == 0
    assert 0 < read_json(folder / "summary.json")["bits_per_byte"] < 8
    network = fairway.load(folder / "model.fwy").network
    matrices = [one for name, one in network.named_parameters() if name.startswith("depth") and one.dim() == 2]
    share = sum(int((one == 0).sum()) for one in matrices) / sum(one.numel() for one in matrices)
    assert share >= zeros
