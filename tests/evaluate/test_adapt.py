"""Score-first adaptation: it learns, never before it is scored, and with no learning it is the fixed predictor."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fairway.core.budget import Ledger
from fairway.core.errors import EvaluationError
from fairway.evaluate.adapt import AdaptConfig, NetworkLearner, ScoredChunk, evaluate_adapted, judge_learner
from fairway.evaluate.bpb import EvaluateConfig, evaluate
from fairway.evaluate.chain import Link, check_chain, extended
from fairway.serve.load import load
from fairway.serve.model import Model
from fairway.serve.scoring import NetworkPredictor, score_sequences, sequences_of
from fairway.serve.window import Window
from serve.tiny import TEXTS

REPETITIVE = [b"hello world, " * 30, b"hello wind, " * 20]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("scope", ["document", "running"])
def test_a_learning_rate_of_zero_is_the_fixed_predictor(model: Model, method: str, scope: str) -> None:
    config = EvaluateConfig(precision="fp64")
    adapt = AdaptConfig.read({"method": method, "scope": scope, "learning_rate": 0})
    fixed = evaluate(model, TEXTS, config)
    assert evaluate_adapted(model, TEXTS, config, adapt).nats == pytest.approx(fixed.nats, rel=1e-12)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_repetitive_text_is_learned(model: Model, method: str) -> None:
    adapted = evaluate_adapted(model, REPETITIVE, adapt=AdaptConfig.read({"method": method, "learning_rate": 0.05}))
    assert adapted.bits_per_byte < 0.9 * evaluate(model, REPETITIVE).bits_per_byte


def test_what_one_document_teaches_is_forgotten_before_the_next(model: Model) -> None:
    adapt = AdaptConfig(scope="document", learning_rate=0.05)
    text = REPETITIVE[0]
    alone = evaluate_adapted(model, [text], adapt=adapt)
    twice = evaluate_adapted(model, [text, text], adapt=adapt)
    assert twice.nats == pytest.approx(2 * alone.nats, rel=1e-6)
    running = evaluate_adapted(model, [text, text], adapt=AdaptConfig(scope="running", learning_rate=0.05))
    assert running.nats < 0.99 * twice.nats


def test_a_chunk_is_learned_only_after_its_link(model: Model) -> None:
    order: list[str] = []

    class Watched(NetworkLearner):
        def predict(self, inputs_BT: torch.Tensor, first: int) -> torch.Tensor:
            order.append("predict")
            return super().predict(inputs_BT, first)

        def learn(self, chunk: ScoredChunk) -> None:
            order.append(f"learn {chunk.link.sequence} {chunk.link.first} {chunk.link.targets}")
            super().learn(chunk)

    adapt, config = AdaptConfig(chunk=12), EvaluateConfig(stride=6)
    learner = Watched(model.network, adapt)
    score = judge_learner(learner, model.tokenizer, REPETITIVE, config.policy(12), config, adapt)
    learned = [step for step in order if step.startswith("learn")]
    assert learned == [f"learn {link.sequence} {link.first} {link.targets}" for link in score.chain]
    assert order[0] == "predict"
    assert sum(link.targets for link in score.chain) == score.tokens
    assert sum(link.nats for link in score.chain) == pytest.approx(score.nats)


def test_targets_outside_the_chunk_are_not_learned(model: Model) -> None:
    seen: list[int] = []

    class Watched(NetworkLearner):
        def learn(self, chunk: ScoredChunk) -> None:
            seen.append(sum(int((targets >= 0).sum()) for _, targets in chunk.batches) - chunk.link.targets)

    adapt, config = AdaptConfig(), EvaluateConfig(stride=5)
    judge_learner(Watched(model.network, adapt), model.tokenizer, TEXTS, config.policy(12), config, adapt)
    assert seen
    assert set(seen) == {0}


def test_the_model_itself_stays_as_it_was(artifact: Path) -> None:
    model = load(artifact)
    before = [parameter.clone() for parameter in model.network.parameters()]
    for method in ("full", "lora"):
        evaluate_adapted(model, REPETITIVE, adapt=AdaptConfig.read({"method": method, "learning_rate": 0.1}))
    assert all(torch.equal(old, new) for old, new in zip(before, model.network.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_the_seconds_of_learning_are_in_the_ledger(model: Model) -> None:
    ledger = Ledger()
    score = evaluate_adapted(model, REPETITIVE, ledger=ledger)
    assert ledger.seconds["adapt"] == pytest.approx(score.seconds_adapt, rel=0.2)
    assert ledger.seconds["evaluate"] > 0
    assert score.seconds > score.seconds_adapt


def test_a_chain_with_any_change_does_not_replay(model: Model) -> None:
    tokens = model.tokenizer.encode_all(REPETITIVE)
    sequences = sequences_of(tokens, model.tokenizer.boundary, "reset")
    policy = EvaluateConfig().policy(12)
    tally = score_sequences(NetworkPredictor(model.network), sequences, policy, 1)
    places = [(index, window) for index, ids in enumerate(sequences) for window in policy.windows(len(ids) - 1)]

    def linked(order: Sequence[tuple[int, Window]]) -> list[Link]:
        chain: list[Link] = []
        for index, window in order:
            tokens = sequences[index][window.first + 1 : window.stop + 1]
            chain.append(extended(chain, index, window.first, tokens, tally.nats[index][window.first : window.stop]))
        return chain

    chain = linked(places)
    for order in (places[::-1], [places[1], places[0], *places[2:]], [*places[1:], places[0]]):
        assert check_chain(linked(order), tally).passed is False
    assert check_chain(chain, tally).passed is True
    swapped = [chain[1], chain[0], *chain[2:]]
    better = [replace(chain[0], nats=chain[0].nats - 1), *chain[1:]]
    forged = extended(chain[:3], 0, chain[3].first, sequences[0][:6], tally.nats[0][:6] * 0.9)
    for wrong in (swapped, better, [*chain[:3], forged, *chain[4:]], chain[1:], chain[:-1], [*chain, chain[-1]]):
        assert check_chain(wrong, tally).passed is False
    tally.nats[1][0] -= 1e-9
    assert check_chain(chain, tally).passed is False


def test_an_adapted_score_can_be_stored_with_its_chain(model: Model) -> None:
    score = evaluate_adapted(model, REPETITIVE)
    stored = json.loads(json.dumps(score.plain()))
    assert stored["chain"][-1]["hash"] == score.chain[-1].hash
    assert stored["bits_per_byte"] == score.bits_per_byte


def test_half_precision_is_refused(model: Model) -> None:
    with pytest.raises(EvaluationError, match="bf16"):
        evaluate_adapted(model, TEXTS, EvaluateConfig(precision="bf16"))
