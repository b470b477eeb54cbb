"""The cheat zoo: known ways of getting a score wrong, each refused with its reason named.

Every fixture reproduces a fault of a published run or of a scorer in use; the honest counterpart of each passes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fairway.core.errors import EvaluationError
from fairway.data.spool import digest_of
from fairway.evaluate.adapt import AdaptConfig, NetworkLearner, judge_learner
from fairway.evaluate.bpb import EvaluateConfig, Score, evaluate, judge
from fairway.evaluate.gates import Facts
from fairway.serve.load import load
from fairway.serve.model import Model
from fairway.serve.scoring import NetworkPredictor, Predictor
from fairway.serve.window import Policy, Window
from serve.tiny import TEXTS, random_network

sentencepiece = pytest.importorskip("sentencepiece")

POLICY = Policy(12, 5)
CONFIG = EvaluateConfig(stride=5)


def judged(predictor: Predictor, model: Model, policy: Policy = POLICY, texts: list[bytes] = TEXTS) -> Score:
    """The score of a predictor that borrows a model's tokenizer."""
    return judge(predictor, model.tokenizer, texts, policy, CONFIG)


def refused(gate: str, predictor: Predictor, model: Model, policy: Policy = POLICY) -> None:
    """Expects a refusal that names one gate."""
    with pytest.raises(EvaluationError, match=gate):
        judged(predictor, model, policy)


@dataclass
class Wrapped:
    """An honest predictor, for faults to be planted in."""

    model: Model

    def __post_init__(self) -> None:
        self.vocabulary = self.model.network.vocabulary
        self.honest = NetworkPredictor(self.model.network)

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        return self.honest.predict(inputs_BT, first)


def favoured(log_p_BTV: Tensor, token_BT: Tensor, share: float) -> Tensor:
    """A normalised mixture that gives a share of the mass to one token."""
    p_BTV = log_p_BTV.exp() * (1 - share)
    return p_BTV.scatter_add(-1, token_BT[..., None], torch.full_like(p_BTV[..., :1], share)).log()


def test_an_honest_predictor_gets_its_score(model: Model) -> None:
    assert judged(Wrapped(model), model).nats == pytest.approx(model.score(TEXTS, stride=5).nats)


class PeeksAtTheTarget(Wrapped):
    """Reads what it should predict from the inputs behind the position."""

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        ahead_BT = torch.roll(inputs_BT, -1, 1)[:, first:]
        return favoured(super().predict(inputs_BT, first), ahead_BT, 0.9)


def test_peeking_at_the_target_is_refused(model: Model) -> None:
    refused("causality", PeeksAtTheTarget(model), model)


class SmearsALittle(Wrapped):
    """Lets one part in a thousand of the next token through."""

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        ahead_BT = torch.roll(inputs_BT, -1, 1)[:, first:]
        return favoured(super().predict(inputs_BT, first), ahead_BT, 0.01)


def test_a_small_leak_of_the_next_token_is_refused(model: Model) -> None:
    refused("causality", SmearsALittle(model), model)


class ReadsNeighbouringRows(Wrapped):
    """Finds the next window of the same text in another row of the batch, where the targets stand as inputs."""

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        log_p_BTV = super().predict(inputs_BT, first)
        ahead_BT = torch.roll(inputs_BT, -1, 1)[:, first:].clone()
        for row in range(len(inputs_BT) - 1):
            ahead_BT[row, -1] = inputs_BT[row + 1, POLICY.length - POLICY.stride] if inputs_BT.shape[1] == 12 else 0
        only_last_BT = torch.zeros_like(ahead_BT, dtype=torch.bool)
        only_last_BT[:-1, -1] = True
        return torch.where(only_last_BT[..., None], favoured(log_p_BTV, ahead_BT, 0.9), log_p_BTV)


def test_reading_the_targets_in_another_row_is_refused(model: Model) -> None:
    texts = [bytes(np.random.default_rng(0).integers(97, 123, 200).astype(np.uint8))]
    judged(Wrapped(model), model, texts=texts)
    with pytest.raises(EvaluationError, match="causality"):
        judged(ReadsNeighbouringRows(model), model, texts=texts)


class HashedCache(Wrapped):
    """Adds to every token the share of a hashed bucket that others fall into too: each may get a high probability."""

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        p_BTV = super().predict(inputs_BT, first).exp()
        bucket_BTV = (inputs_BT[:, first:, None] * 31 + torch.arange(self.vocabulary)) % 16
        return (0.5 * p_BTV + 0.5 * (bucket_BTV < 8)).log()


def test_a_hashed_cache_whose_probabilities_do_not_sum_to_one_is_refused(model: Model) -> None:
    refused("normalisation", HashedCache(model), model)


class RootOfEveryByte(Wrapped):
    """Takes p^(1/n) for a token of n bytes, as mixtures over bytes do."""

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        sizes = torch.tensor([max(1, len(self.model.tokenizer.piece(token))) for token in range(self.vocabulary)])
        return super().predict(inputs_BT, first) / sizes


def test_roots_of_probabilities_are_refused(model: Model) -> None:
    refused("normalisation", RootOfEveryByte(model), model)


class Remembers(Wrapped):
    """Keeps all text it was scored on, and is sure of what it has seen before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: dict[tuple[int, ...], int] = {}

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        log_p_BTV = super().predict(inputs_BT, first)
        rows, time = inputs_BT.shape
        known_BT = torch.full((rows, time), -1)
        for row, tokens in enumerate(inputs_BT.tolist()):
            for place in range(3, time):
                known_BT[row, place] = self.seen.get(tuple(tokens[place - 3 : place + 1]), -1)
            for place in range(3, time - 1):
                self.seen[tuple(tokens[place - 3 : place + 1])] = tokens[place + 1]
        known_BT = known_BT[:, first:]
        return torch.where(known_BT[..., None] >= 0, favoured(log_p_BTV, known_BT.clamp_min(0), 0.9), log_p_BTV)


def test_a_second_look_at_the_text_is_refused(model: Model) -> None:
    refused("one pass|causality", Remembers(model), model)


def test_two_passes_over_the_text_are_refused(model: Model) -> None:
    class Second(Remembers):
        """Was run over the text before, and goes on learning."""

    cheat = Second(model)
    with pytest.raises(EvaluationError):
        judged(cheat, model)
    with pytest.raises(EvaluationError, match=r"one pass|causality"):
        judged(Second(model), model, Policy(12, 12))


class KnowsWholeRows(Wrapped):
    """Remembers every row of a batch as a whole, and is sure of one that it sees again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: set[tuple[int, ...]] = set()

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        log_p_BTV = super().predict(inputs_BT, first)
        known_B = torch.tensor([tuple(row) in self.seen for row in inputs_BT.tolist()])
        self.seen |= {tuple(row) for row in inputs_BT.tolist()}
        ahead_BT = torch.roll(inputs_BT, -1, 1)[:, first:]
        return torch.where(known_B[:, None, None], favoured(log_p_BTV, ahead_BT, 0.9), log_p_BTV)


def test_text_that_is_known_when_it_is_seen_again_is_refused(model: Model) -> None:
    refused("one pass: ", KnowsWholeRows(model), model)


class DropsTheTail(Policy):
    """Whole windows alone."""

    def windows(self, targets: int) -> Iterator[Window]:
        yield from (window for window in super().windows(targets) if window.stop - window.start == self.length)


def test_a_dropped_tail_is_refused(model: Model) -> None:
    refused("every byte exactly once: .* were left out", Wrapped(model), model, DropsTheTail(12, 5))


class ScoresTheTailAgain(Policy):
    """A window at every multiple of the stride, the ends of the last ones scored repeatedly."""

    def windows(self, targets: int) -> Iterator[Window]:
        for start in range(0, targets, self.stride):
            stop = min(start + self.length, targets)
            yield Window(start, max(start, stop - self.stride) if start else 0, stop)


def test_overlapping_windows_counted_twice_are_refused(model: Model) -> None:
    refused("every byte exactly once: .* scored repeatedly", Wrapped(model), model, ScoresTheTailAgain(12, 5))


def facts(training: list[bytes], validation: list[bytes]) -> Facts:
    return Facts(frozenset(map(digest_of, training)), frozenset(map(digest_of, validation)), sum(map(len, validation)))


OWN = [f"document {number} of the validation text".encode() for number in range(10)]


def test_training_on_the_evaluation_text_is_refused(model: Model) -> None:
    evaluate(model, OWN, facts=facts([b"other text"], OWN))
    with pytest.raises(EvaluationError, match=r"disjoint: 10 of 10 documents \(100% of the bytes\) were trained on"):
        evaluate(model, OWN, facts=facts(OWN, OWN))


def test_an_overlap_of_four_fifths_is_refused(model: Model) -> None:
    with pytest.raises(EvaluationError, match=r"disjoint: 8 of 10 documents \(80% of the bytes\) were trained on"):
        evaluate(model, OWN, facts=facts(OWN[:8], OWN))


def test_scoring_a_fifth_of_the_text_is_refused(model: Model) -> None:
    with pytest.raises(EvaluationError, match="text as hashed: 2 documents"):
        evaluate(model, OWN[:2], facts=facts([b"other text"], OWN))


def test_an_artifact_other_than_the_logged_one_is_refused(artifact: Path) -> None:
    model = load(artifact)
    evaluate(model, TEXTS, facts=Facts(artifact=model.sha256))
    with pytest.raises(EvaluationError, match=r"artifact as hashed: .* in the log it was"):
        evaluate(model, TEXTS, facts=Facts(artifact="0" * 64))


def test_weights_that_are_not_those_of_the_artifact_are_refused(artifact: Path) -> None:
    model = load(artifact)
    other = replace(model, network=random_network(model.network.vocabulary, seed=5))
    with pytest.raises(EvaluationError, match=r"artifact as hashed: .* tensors in memory are not those"):
        evaluate(other, TEXTS)


def test_a_file_exchanged_after_loading_is_refused(model: Model, artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.fwy"
    path.write_bytes(artifact.read_bytes())
    loaded = load(path)
    path.write_bytes(artifact.read_bytes()[::-1])
    with pytest.raises(EvaluationError, match=r"artifact as hashed: .* when it was loaded it was"):
        evaluate(loaded, TEXTS)
    assert model.path is None


class LearnsWhilePredicting(NetworkLearner):
    """Updates on the inputs it is shown, before their score is final."""

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        log_p_BTV = super().predict(inputs_BT, first)
        if inputs_BT.shape[1] < 2:
            return log_p_BTV
        with torch.enable_grad():
            logits_BTV = self.network.logits(self.network(inputs_BT[:, :-1]).hidden_BTD)
            loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), inputs_BT[:, 1:].flatten())
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        return log_p_BTV


def test_learning_before_the_score_is_final_is_refused(model: Model) -> None:
    adapt = AdaptConfig(method="full", learning_rate=0.05)
    text = [b"hello world, hello wind " * 10]
    honest = NetworkLearner(model.network, adapt)
    judge_learner(honest, model.tokenizer, text, POLICY, CONFIG, adapt)
    cheat = LearnsWhilePredicting(model.network, adapt)
    with pytest.raises(EvaluationError, match=r"one pass|causality"):
        judge_learner(cheat, model.tokenizer, text, POLICY, CONFIG, adapt)
