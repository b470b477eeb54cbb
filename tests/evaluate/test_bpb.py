"""The evaluator: three ways of scoring agree, and what it cannot score it refuses."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fairway.core.errors import EvaluationError
from fairway.core.log import Event
from fairway.data.spool import digest_of
from fairway.evaluate.bpb import EvaluateConfig, evaluate, sample
from fairway.evaluate.gates import Facts
from fairway.evaluate.proof import prove
from fairway.serve.engine import Session
from fairway.serve.load import load
from fairway.serve.model import Model
from serve.tiny import TEXTS

GATES = [
    "artifact as hashed",
    "text as hashed",
    "train and validation disjoint",
    "decode(encode(text)) == text",
    "bytes from the text",
    "every byte exactly once",
    "normalisation",
    "causality",
    "one pass",
]


def served(model: Model, config: EvaluateConfig) -> float:
    """Bits per byte as serving would find them: token by token, by carried state, in float64."""
    network = model.coder("fp64").network
    nats = []
    for text in TEXTS:
        edge = model.tokenizer.boundary
        session = Session(network, config.policy(model.context), [edge])
        for token in [*model.tokenizer.encode(text).tolist(), edge]:
            nats.append(-float(session.logits().log_softmax(-1)[token]))
            session.push(token)
    return math.fsum(nats) / math.log(2) / sum(map(len, TEXTS))


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("settings", [{"mode": "plain"}, {"stride": 5}])
def test_evaluation_proof_and_serving_agree(artifact: Path, settings: dict[str, object]) -> None:
    model, config = load(artifact), EvaluateConfig.read({"precision": "fp64", **settings})
    score = evaluate(model, TEXTS, config)
    proof = prove(model, TEXTS, score, config)
    proven = proof.nats / math.log(2) / proof.text_bytes
    assert score.bits_per_byte == pytest.approx(served(model, config), abs=1e-6)
    assert score.bits_per_byte == pytest.approx(proven, abs=1e-6)


@pytest.mark.parametrize("documents", ["reset", "concatenated"])
@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
def test_the_batch_leaves_the_score_alone(model: Model, documents: str, precision: str) -> None:
    allowed = {"fp32": 1e-6, "fp64": 1e-12, "bf16": 0.05}[precision]
    scores = [
        evaluate(model, TEXTS, EvaluateConfig.read({"documents": documents, "precision": precision, "batch": batch}))
        for batch in (1, 2, 7, 32)
    ]
    for score in scores[1:]:
        assert score.bits_per_byte == pytest.approx(scores[0].bits_per_byte, rel=allowed)
        assert (score.tokens, score.bytes, score.documents) == (scores[0].tokens, scores[0].bytes, len(TEXTS))


def test_a_score_lists_every_gate_and_can_be_stored(artifact: Path) -> None:
    digests = frozenset(map(digest_of, set(TEXTS)))
    facts = Facts(frozenset([digest_of(b"other")]), digests, sum(map(len, set(TEXTS))), 0.1)
    texts = list(dict.fromkeys(TEXTS))
    score = evaluate(load(artifact), texts, facts=facts)
    assert [gate.name for gate in score.gates] == GATES
    assert all(gate.passed for gate in score.gates)
    stored = json.loads(json.dumps(score.plain()))
    assert stored["bits_per_byte"] == score.bits_per_byte
    assert stored["artifact"] == load(artifact).sha256


def test_what_is_not_known_is_said_to_be_not_applicable(model: Model) -> None:
    verdicts = {gate.name: gate.passed for gate in evaluate(model, TEXTS).gates}
    assert [name for name, passed in verdicts.items() if passed is None] == GATES[:3]


def test_plain_windows_are_the_sliding_ones_of_full_stride(model: Model) -> None:
    plain = evaluate(model, TEXTS, EvaluateConfig(mode="plain"))
    assert plain.nats == evaluate(model, TEXTS, EvaluateConfig(stride=12)).nats
    assert (plain.mode, plain.window, plain.stride) == ("plain", 12, 12)
    sliding = evaluate(model, TEXTS)
    assert (sliding.mode, sliding.window, sliding.stride) == ("sliding", 12, 6)


def test_the_evaluation_leaves_the_model_alone(model: Model) -> None:
    before = [parameter.clone() for parameter in model.network.parameters()]
    evaluate(model, TEXTS, EvaluateConfig(precision="fp64"))
    assert all(torch.equal(old, new) for old, new in zip(before, model.network.parameters(), strict=True))


def test_progress_goes_from_nothing_to_all(model: Model) -> None:
    events: list[Event] = []
    evaluate(model, TEXTS, EvaluateConfig(batch=2), listener=events.append)
    shares = [event.fraction for event in events if event.fraction is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 5


def test_a_sample_is_of_whole_documents_and_does_not_depend_on_their_order() -> None:
    random = np.random.default_rng(0)
    texts = [random.bytes(int(size)) for size in random.integers(1, 100, 50)]
    kept = sample(texts, 700)
    assert sum(map(len, kept)) <= 700
    assert set(kept) <= set(texts)
    assert kept == [text for text in texts if text in kept]
    assert set(sample(texts[::-1], 700)) == set(kept)
    assert sample(texts, None) == texts
    assert len(sample(texts, 1)) == 1


@pytest.mark.parametrize("texts", [[], [b""], [b"", b""]])
def test_text_of_no_bytes_has_no_score(model: Model, texts: list[bytes]) -> None:
    with pytest.raises(EvaluationError, match="nothing to score"):
        evaluate(model, texts)
