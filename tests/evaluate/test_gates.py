"""Each gate by itself: it holds where it should, and says what is wrong where it should not."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fairway.core.errors import EvaluationError
from fairway.data.parts import Tokenizer
from fairway.data.spool import digest_of
from fairway.evaluate import gates
from fairway.evaluate.bpb import TOLERANCES
from fairway.evaluate.gates import Facts, GateResult, Normalisation, refuse_failures
from fairway.serve.model import Model
from fairway.serve.scoring import NetworkPredictor, score_sequences, sequences_of
from fairway.serve.window import Policy
from serve.tiny import TEXTS, random_network

POLICY = Policy(12, 5)


def test_all_failures_are_named_together() -> None:
    results = [GateResult("one", False, "A."), GateResult("two", True, "B."), GateResult("three", False, "C.")]
    with pytest.raises(EvaluationError, match=r"one: A\. three: C\."):
        refuse_failures(results)
    refuse_failures([GateResult("two", True, "B."), GateResult("four", None, "D.")])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda texts: [*texts, b"foreign"], "not in the manifest"),
        (lambda texts: [*texts, texts[0]], "more than once"),
        (lambda texts: texts[1:], "the manifest has"),
    ],
)
def test_text_other_than_the_manifests_is_noticed(change, reason: str) -> None:
    texts = list(dict.fromkeys(TEXTS))
    facts = Facts(validation=frozenset(map(digest_of, texts)), validation_bytes=sum(map(len, texts)))
    assert gates.same_text(texts, facts, complete=True).passed
    found = gates.same_text(change(texts), facts, complete=True)
    assert found.passed is False
    assert reason in found.detail


def test_a_sample_of_the_manifests_text_says_that_it_is_one() -> None:
    texts = list(dict.fromkeys(TEXTS))
    facts = Facts(validation=frozenset(map(digest_of, texts)), validation_bytes=sum(map(len, texts)))
    found = gates.same_text(texts[:2], facts, complete=False)
    assert found.passed
    assert "a sample" in found.detail


def tally_of(model: Model):
    tokens = model.tokenizer.encode_all(TEXTS)
    predictor = NetworkPredictor(model.network)
    return predictor, score_sequences(predictor, sequences_of(tokens, model.tokenizer.boundary, "reset"), POLICY)


def test_coverage_counts_what_was_left_out_and_what_was_repeated(model: Model) -> None:
    _, tally = tally_of(model)
    assert gates.coverage(tally, model.tokenizer, TEXTS).passed
    tally.counts[0][3] = 0
    tally.counts[2][:2] = 2
    found = gates.coverage(tally, model.tokenizer, TEXTS)
    assert not found.passed
    assert "1 were left out and 2 scored repeatedly" in found.detail


def test_coverage_compares_the_targets_with_the_text(model: Model) -> None:
    _, tally = tally_of(model)
    assert not gates.coverage(tally, model.tokenizer, [b"other", *TEXTS[1:]]).passed


@pytest.mark.parametrize(("scale", "passes"), [(1.0, True), (1 + 5e-5, True), (1 + 2e-4, False), (0.5, False)])
def test_normalisation_allows_rounding_alone(scale: float, passes: bool) -> None:
    class Scaled:
        vocabulary = 263

        def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
            logits = torch.zeros(inputs_BT.shape[0], inputs_BT.shape[1] - first, 263, dtype=torch.float64)
            return logits.log_softmax(-1) + np.log(scale)

    normalisation = Normalisation()
    score_sequences(Scaled(), [np.arange(100)], POLICY, observe=normalisation.observe)
    assert normalisation.result().passed is passes
    assert normalisation.checked == 99


def test_numbers_that_are_none_fail_normalisation() -> None:
    class Broken:
        vocabulary = 263

        def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
            log_p = torch.zeros(inputs_BT.shape[0], inputs_BT.shape[1] - first, 263).log_softmax(-1)
            log_p[0, 0] = float("nan")
            return log_p

    normalisation = Normalisation()
    score_sequences(Broken(), [np.arange(100)], POLICY, observe=normalisation.observe)
    assert normalisation.result().passed is False


def test_padding_behind_a_short_row_is_not_judged(model: Model) -> None:
    predictor, tally = tally_of(model)
    normalisation = Normalisation()
    score_sequences(predictor, tally.sequences, POLICY, observe=normalisation.observe)
    assert normalisation.checked == tally.tokens


def test_a_table_of_pieces_that_disagrees_with_the_text_is_noticed(model: Model) -> None:
    class Stretched:
        vocabulary = model.tokenizer.vocabulary
        boundary = model.tokenizer.boundary

        def piece(self, token: int) -> bytes:
            return model.tokenizer.piece(token) * (2 if token == 104 else 1)

        def text_bytes(self, pieces: bytes) -> int:
            return len(pieces)

    tokens = model.tokenizer.encode_all([b"what a hat"])
    wrong: Tokenizer = Stretched()  # pyrefly: ignore[bad-assignment]
    assert gates.byte_count(model.tokenizer, [b"what a hat"], tokens).passed
    found = gates.byte_count(wrong, [b"what a hat"], tokens)
    assert "10 bytes; its tokens are said to hold 12" in found.detail


def test_a_predictor_that_has_changed_since_the_pass_is_noticed(model: Model) -> None:
    predictor, tally = tally_of(model)
    tolerance = TOLERANCES["fp32"]
    assert gates.one_pass(predictor, tally, POLICY, 32, tolerance).passed is True
    other = NetworkPredictor(random_network(model.network.vocabulary, seed=7))
    assert gates.one_pass(other, tally, POLICY, 32, tolerance).passed is False


def test_a_prediction_that_later_tokens_move_is_noticed_where_the_score_gains_nothing(model: Model) -> None:
    honest = NetworkPredictor(model.network)
    sequences = sequences_of(
        model.tokenizer.encode_all([b"hello world, hello wind"]), model.tokenizer.boundary, "reset"
    )

    class Swaps:
        """Exchanges the probabilities of two tokens that never come, by what stands behind the position."""

        vocabulary = model.network.vocabulary

        def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
            log_p_BTV = honest.predict(inputs_BT, first)
            swapped_BTV = log_p_BTV.clone()
            swapped_BTV[..., [1, 2]] = log_p_BTV[..., [2, 1]]
            ahead_BT1 = torch.roll(inputs_BT, -1, 1)[:, first:, None]
            return torch.where(ahead_BT1 % 2 == 0, log_p_BTV, swapped_BTV)

    tally = score_sequences(Swaps(), sequences, POLICY)
    assert tally.total() == pytest.approx(score_sequences(honest, sequences, POLICY).total())
    found = gates.causality(Swaps(), tally, POLICY, 8, TOLERANCES["fp32"])
    assert found.passed is False
    assert "Changing later tokens" in found.detail


def test_another_future_alone_is_seen_to_move_nothing_of_an_honest_predictor(model: Model) -> None:
    predictor, tally = tally_of(model)
    assert gates.causality(predictor, tally, POLICY, 8, TOLERANCES["fp32"]).passed is True
