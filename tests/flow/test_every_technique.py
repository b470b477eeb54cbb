"""Every technique that a recipe can name goes all the way: text, three steps, artifact under its cap, score, sample."""

import io
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

import fairway.run
from fairway.core.config import Slot
from fairway.core.log import Listener, silent
from fairway.core.storage import read_json
from fairway.data.manifest import Manifest
from fairway.data.parts import TokenizerConfig
from fairway.evaluate.bpb import EvaluateConfig, evaluate
from fairway.evaluate.gates import facts_of
from fairway.run import Recipe, Run, load_recipe
from fairway.serve.load import load

ROOT = Path(__file__).parents[2]
TEXT = Path(sysconfig.get_paths()["stdlib"], "argparse.py")
STEPS, CAP = 3, 60_000
PIECE = 1500
BASE = (
    "data.source.kind=text",
    "data.max_bytes=null",
    f"budget.bytes={CAP}",
    f"budget.steps={STEPS}",
    "model.width=32",
    "model.context=32",
    "train.batch=4",
    "evaluate.mode=plain",
    "evaluate.probes=4",
    "evaluate.max_bytes=4kB",
    "sample.tokens=12",
)
MODEL = ("mixer", "ffn", "norm", "position", "embedding", "depth")
SLOTS = {f"model.{name}": f"model.{name}" for name in MODEL} | {
    "train.optimizer": "optim.optimizer",
    "train.schedule": "optim.schedule",
    "train.precision": "train.precision",
    "train.recompute": "train.recompute",
    "data.tokenizer": "data.tokenizer",
}
"""Where a recipe chooses, and the slot's package."""
SMALL: dict[str, dict[str, Any]] = {
    "attention": {"heads": 4},
    "shared": {"layers": 3},
    "recurrent": {"layers": 3},
    "act": {"layers": 3},
    "skip": {"layers": 3},
    "factored": {"inner": 8},
    "bigram_hash": {"rows": 64, "inner": 8},
}
QUICK = {("model.mixer", "mamba"), ("model.ffn", "channel_mix"), ("model.depth", "shared")}
"""Enough to notice a broken path at once: carried state, a feed-forward with state, one weight under two names."""


def choices() -> list[Any]:
    """One case for each kind of each slot; most of them slow."""
    cases = [(path, kind) for path, slot in SLOTS.items() for kind in Slot(f"fairway.{slot}", "").kinds()]
    assert set(cases) >= QUICK
    return [
        pytest.param(path, kind, id=f"{path}={kind}", marks=[] if (path, kind) in QUICK else [pytest.mark.slow])
        for path, kind in cases
    ]


def settings_of(kind: str, folder: Path) -> dict[str, Any]:
    """What a technique must be told to be small; tokenizers made elsewhere are made here first."""
    if kind == "sentencepiece":
        path = folder / "tokenizer.model"
        path.write_bytes(sentencepiece_model())
        return {"path": str(path)}
    if kind == "pretrained":
        path = folder / "tokenizer.json"
        config = Slot("fairway.data.tokenizer", "bpe").config("bpe").read({"vocabulary": 300})
        assert isinstance(config, TokenizerConfig)
        tokenizer: Any = config.train([TEXT.read_bytes()], 0)
        path.write_text(tokenizer.tokenizer_json(), encoding="utf-8")
        return {"path": str(path)}
    return {"vocabulary": 320} if kind in ("bpe", "unigram") else SMALL.get(kind, {})


def sentencepiece_model() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXT.read_text(encoding="utf-8").splitlines()),
        model_writer=model,
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many short documents of real text."""
    folder, data = tmp_path_factory.mktemp("text"), TEXT.read_bytes()
    for start in range(0, len(data), PIECE):
        (folder / f"{start:06d}.txt").write_bytes(data[start : start + PIECE])
    return folder


@pytest.fixture(scope="module")
def prepared(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text as all runs with the recipe's own tokenizer share it."""
    run = Run.create(recipe_with("model.depth", "plain", text, text), tmp_path_factory.mktemp("prepared"))
    run.prepare(silent)
    return run.data


def score_in_this_process(artifact: Path, data: Path, config: EvaluateConfig, listener: Listener) -> dict[str, Any]:
    """What the fresh process of a run does, without the seconds that starting one takes."""
    manifest = Manifest.read(data)
    documents = manifest.validation_documents()
    return evaluate(load(artifact), documents, config, facts=facts_of(manifest), listener=listener).plain()


def recipe_with(path: str, kind: str, text: Path, folder: Path) -> Recipe:
    """The tiny recipe with one technique exchanged."""
    chosen = [f"{path}.{name}={value}" for name, value in {"kind": kind, **settings_of(kind, folder)}.items()]
    return load_recipe(ROOT / "recipes" / "tiny.yaml", [*BASE, f"data.source.path={text}", *chosen])


@pytest.mark.parametrize(("path", "kind"), choices())
def test_every_technique_goes_from_text_to_a_score_and_a_sample(
    path: str, kind: str, text: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (path, kind) not in QUICK:
        monkeypatch.setattr(fairway.run, "score_in_fresh_process", score_in_this_process)
    recipe = recipe_with(path, kind, text, tmp_path)
    check(Run(recipe, tmp_path / "run", None if path == "data.tokenizer" else prepared))


@pytest.mark.slow
def test_a_pattern_of_mixers_goes_from_text_to_a_score_and_a_sample(
    text: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fairway.run, "score_in_fresh_process", score_in_this_process)
    pattern = "model.mixer=[mamba, gated_delta, {kind: attention, heads: 4}]"
    chosen = [*BASE, f"data.source.path={text}", "model.depth=3", pattern]
    check(Run(load_recipe(ROOT / "recipes" / "tiny.yaml", chosen), tmp_path / "run", prepared))


def check(run: Run) -> None:
    """Runs it: the artifact keeps to its cap and has a score, a sample, and every parameter."""
    summary = run.execute(silent)
    assert summary.steps == STEPS
    assert run.artifact.stat().st_size == summary.bytes <= CAP
    assert 0.5 < summary.bits_per_byte < 9.5
    assert read_json(run.score)["bytes"] > 1000
    assert (run.folder / "sample.txt").read_text(encoding="utf-8").startswith(run.recipe.sample.prompt)
    trained, _ = run.trained(silent)
    served = load(run.artifact).network
    assert {name for name, _ in trained.named_parameters()} == {name for name, _ in served.named_parameters()}
