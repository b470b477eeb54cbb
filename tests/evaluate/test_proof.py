"""Proof by compression: in fresh processes, byte for byte, and never of a score that it does not support."""

import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fairway.core.errors import EvaluationError
from fairway.data.tokenizer import bpe
from fairway.evaluate import proof as module
from fairway.evaluate.bpb import EvaluateConfig, evaluate
from fairway.evaluate.proof import main, prove
from fairway.model.lm import ModelConfig
from fairway.serve.load import load
from fairway.serve.model import Model
from serve.tiny import TEXTS, random_network, write_artifact


def test_text_and_random_bytes_are_proven_within_a_thousandth_and_64_bytes(artifact: Path, tmp_path: Path) -> None:
    model = load(artifact)
    texts = [*TEXTS, np.random.default_rng(0).bytes(1200)]
    score = evaluate(model, texts)
    proof = prove(model, texts, score, folder=tmp_path)
    assert proof.bytes == (tmp_path / "proof.fwyz").stat().st_size
    assert proof.score_bytes - 1 <= proof.bytes <= 1.001 * proof.score_bytes + 64
    assert model.decompress_documents((tmp_path / "proof.fwyz").read_bytes()) == texts
    assert proof.plain()["bits_per_byte"] == proof.bits_per_byte >= score.bits_per_byte


@pytest.mark.usefixtures("in_this_process")
def test_a_score_that_is_too_good_is_not_confirmed(artifact: Path) -> None:
    model = load(artifact)
    score = evaluate(model, TEXTS)
    with pytest.raises(EvaluationError, match="The proof failed"):
        prove(model, TEXTS, replace(score, nats=score.nats * 0.5))


@pytest.mark.usefixtures("in_this_process")
def test_a_score_of_other_text_is_not_confirmed(artifact: Path) -> None:
    model = load(artifact)
    with pytest.raises(EvaluationError, match="The proof failed"):
        prove(model, TEXTS[:3], evaluate(model, TEXTS))


def test_a_changed_artifact_is_named_by_its_checksum(model: Model, artifact: Path, tmp_path: Path) -> None:
    data = bytearray(artifact.read_bytes())
    data[-40] ^= 1
    path = tmp_path / "changed.fwy"
    path.write_bytes(data)
    score = evaluate(model, TEXTS)
    with pytest.raises(EvaluationError, match="checksum"):
        prove(replace(model, path=path), TEXTS, score)


@pytest.mark.usefixtures("in_this_process")
def test_text_that_comes_back_altered_is_no_proof(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(artifact)
    score = evaluate(model, TEXTS)
    monkeypatch.setattr(module, "_read_documents", lambda path: TEXTS if path.name == "text" else TEXTS[1:])
    with pytest.raises(EvaluationError, match="not the text that was compressed"):
        prove(model, TEXTS, score)


def test_half_a_proof_ends_with_one_message(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "foreign").write_bytes(b"something else")
    assert main(["1", "decompress", str(artifact), str(tmp_path / "foreign"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"documents": "concatenated"}, {"precision": "bf16"}])
def test_what_cannot_be_proven_is_refused(artifact: Path, settings: dict[str, str]) -> None:
    model, config = load(artifact), EvaluateConfig.read(settings)
    with pytest.raises(EvaluationError, match="proof"):
        prove(model, TEXTS, evaluate(model, TEXTS, config), config)


def test_a_model_without_a_file_cannot_be_proven(model: Model) -> None:
    with pytest.raises(EvaluationError, match="needs the artifact file"):
        prove(model, TEXTS, evaluate(model, TEXTS))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_the_standard_library_and_random_bytes_are_proven(tmp_path: Path, precision: str) -> None:
    folder = Path(sysconfig.get_path("stdlib"))
    texts = [(folder / name).read_bytes()[:12_000] for name in ("ast.py", "bisect.py", "calendar.py", "heapq.py")]
    tokenizer = bpe.Config(vocabulary=512).train(texts, 0)
    config = ModelConfig.read({"width": 64, "context": 64, "depth": 3, "mixer": {"kind": "attention", "heads": 4}})
    network = random_network(tokenizer.vocabulary, config=config)
    model = load(write_artifact(Model(network, tokenizer), tmp_path / "model.fwy"))
    texts.append(np.random.default_rng(0).bytes(4000))
    settings = EvaluateConfig.read({"precision": precision})
    score = evaluate(model, texts, settings)
    proof = prove(model, texts, score, settings)
    assert proof.score_bytes - 1 <= proof.bytes <= 1.001 * proof.score_bytes + 64
    assert proof.nats == pytest.approx(score.nats, rel=1e-6)
