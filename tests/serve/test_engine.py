"""Decoding by state: the same as recomputing everything, in the windows of scoring."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fairway.model.lm import LanguageModel, ModelConfig
from fairway.serve.engine import Session, walk
from fairway.serve.model import Model
from fairway.serve.window import Policy
from serve.tiny import CONFIG, random_network


def recomputed(network: LanguageModel, tokens: list[int], policy: Policy) -> Tensor:
    """Logits of the next token by one forward over its window."""
    window = policy.window(len(tokens) - 1)
    return network.logits(network(torch.tensor([tokens[window.start :]])).hidden_BTD)[0, -1]


@pytest.mark.parametrize("stride", [1, 4, 12])
@pytest.mark.parametrize("prompt", [1, 5, 12, 13, 40])
def test_decoding_by_state_equals_recomputation(stride: int, prompt: int) -> None:
    network = random_network(263).double()
    policy = Policy(12, stride)
    tokens = np.random.default_rng(0).integers(0, 263, prompt).tolist()
    session = Session(network, policy, tokens)
    for _ in range(40):
        logits = session.logits()
        assert torch.allclose(logits, recomputed(network, session.tokens, policy), atol=1e-10)
        session.push(int(logits.argmax()))


def test_greedy_text_is_that_of_full_recomputation(model: Model) -> None:
    text = "".join(model.generate("hello w", tokens=50, temperature=0))
    tokens = [model.tokenizer.boundary, *model.tokenizer.encode(b"hello w").tolist()]
    start = len(tokens)
    for _ in range(50):
        following = int(recomputed(model.network, tokens, model.policy()).argmax())
        if following == model.tokenizer.boundary:
            break
        tokens.append(following)
    assert text == model.tokenizer.decode(tokens[start:]).decode("utf-8", "replace")


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_a_walk_gives_every_sequence_the_logits_of_its_own_prefix(at_once: int) -> None:
    network = random_network(20, config=ModelConfig.read({**CONFIG.plain(), "context": 6})).double()
    policy = Policy(6, 4)
    random = np.random.default_rng(1)
    texts = [[*random.integers(1, 20, size).tolist(), 0] for size in (0, 30, 3, 5, 6, 7, 30, 1)]
    seen: dict[int, list[int]] = {lane: [0] for lane in range(len(texts))}

    def choose(logits_BV: Tensor, lanes: list[int]) -> list[int]:
        chosen = []
        for logits_V, lane in zip(logits_BV, lanes, strict=True):
            assert torch.allclose(logits_V, recomputed(network, seen[lane], policy), atol=1e-10)
            chosen.append(texts[lane][len(seen[lane]) - 1])
            seen[lane].append(chosen[-1])
        return chosen

    walk(network, policy, 0, len(texts), at_once, choose)
    assert [seen[lane][1:] for lane in seen] == texts
