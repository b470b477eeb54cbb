"""Scores: against a loop over single tokens, and against what is known in advance."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fairway.serve.model import Model
from fairway.serve.scoring import Documents, NetworkPredictor, score_documents, score_sequences, sequences_of
from fairway.serve.window import Policy
from serve.tiny import TEXTS


class Uniform:
    """Knows nothing."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        rows, time = inputs_BT.shape
        return torch.full((rows, time - first, self.vocabulary), -math.log(self.vocabulary), dtype=torch.float64)


def loop(model: Model, sequences: list[np.ndarray], policy: Policy) -> float:
    """Nats by one forward for each target, in float64: the definition."""
    network = NetworkPredictor(model.coder("fp64").network).network
    nats = []
    for sequence in sequences:
        done = start = 0
        while done < len(sequence) - 1:
            stop = min(start + policy.length, len(sequence) - 1)
            for target in range(done, stop):
                inputs = torch.from_numpy(sequence[None, start : target + 1].astype(np.int64))
                logits = network.logits(network(inputs).hidden_BTD)[0, -1]
                nats.append(-float(logits.log_softmax(-1)[int(sequence[target + 1])]))
            done = stop
            start += policy.stride
    return math.fsum(nats)


@pytest.mark.parametrize("documents", ["reset", "concatenated"])
@pytest.mark.parametrize("stride", [1, 5, 6, 12])
def test_batched_windows_give_the_nats_of_single_tokens(model: Model, documents: Documents, stride: int) -> None:
    tokens = model.tokenizer.encode_all(TEXTS)
    sequences = sequences_of(tokens, model.tokenizer.boundary, documents)
    policy = Policy(12, stride)
    predictor = NetworkPredictor(model.coder("fp64").network)
    expected = loop(model, sequences, policy)
    for batch in (1, 3, 32):
        assert score_sequences(predictor, sequences, policy, batch).total() == pytest.approx(expected, rel=1e-12)


def test_a_document_is_scored_between_two_boundaries() -> None:
    tokens = [np.array([3, 4]), np.array([], np.int64), np.array([5])]
    assert [ids.tolist() for ids in sequences_of(tokens, 9, "reset")] == [[9, 3, 4, 9], [9, 9], [9, 5, 9]]
    assert [ids.tolist() for ids in sequences_of(tokens, 9, "concatenated")] == [[9, 3, 4, 9, 9, 5, 9]]
    assert sequences_of([], 9, "concatenated") == []


@pytest.mark.parametrize("documents", ["reset", "concatenated"])
def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary(model: Model, documents: Documents) -> None:
    score = score_documents(Uniform(263), model.tokenizer, TEXTS, Policy(12, 5), documents)
    size = sum(map(len, TEXTS))
    assert score.bytes == size
    assert score.tokens == sum(len(ids) + 1 for ids in model.tokenizer.encode_all(TEXTS))
    assert score.bits_per_byte == pytest.approx(score.tokens * math.log2(263) / size, rel=1e-12)


def test_the_same_document_scores_the_same_wherever_it_stands(model: Model) -> None:
    alone = model.score(TEXTS[0]).nats
    assert model.score([*TEXTS, TEXTS[0]]).nats - model.score(TEXTS).nats == pytest.approx(alone, abs=1e-4)


def test_concatenated_documents_see_those_before_them(model: Model) -> None:
    assert model.score(TEXTS, documents="concatenated").nats != pytest.approx(model.score(TEXTS).nats, rel=1e-4)


def test_no_text_has_a_score_of_no_bits(model: Model) -> None:
    score = model.score([])
    assert (score.bits_per_byte, score.bytes, score.tokens) == (0.0, 0, 0)
