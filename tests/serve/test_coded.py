"""Products on an artifact's integers: those of the floats, rounded less, while the weights are these integers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fairway.model.lm import ModelConfig
from fairway.serve import coded
from fairway.serve.coded import CodedProducts
from fairway.serve.scoring import NetworkPredictor, score_sequences
from fairway.serve.window import Policy
from laws.levels import at_level
from serve.tiny import integers, random_network

CONFIG = ModelConfig.read(
    {
        "width": 48, "context": 24, "depth": 2, "mixer": {"kind": "attention", "heads": 3},
        "embedding": {"kind": "bigram_hash", "rows": 40, "inner": 16},
    }
)  # fmt: skip
LEVEL = "avx512bf16"


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of the matrices that were multiplied as integers, in order."""
    seen: list[tuple[int, int]] = []
    ours = coded.code_product

    def counted(matrix: object, x: Tensor) -> Tensor:
        seen.append((matrix.rows, matrix.columns))  # pyrefly: ignore
        return ours(matrix, x)  # pyrefly: ignore

    monkeypatch.setattr(coded, "code_product", counted)
    return seen


def test_every_product_of_a_quantised_model_is_of_integers_and_nearer_to_the_truth(products: list) -> None:
    network = random_network(50, config=CONFIG)
    steps = integers(network, 20)
    tokens_BT = torch.randint(50, (4, 24), generator=torch.Generator().manual_seed(0))
    wanted = NetworkPredictor(random_network(50, config=CONFIG).double())
    wanted.network.load_state_dict(network.state_dict())
    exact = wanted.predict(tokens_BT, 5)
    with at_level(LEVEL):
        floats = NetworkPredictor(network).predict(tokens_BT, 5)
        assert products == []
        ours = NetworkPredictor(network, steps=steps).predict(tokens_BT, 5)
    assert products == [(48, 16), *2 * [*4 * [(48, 48)], (192, 48), (48, 192)], (50, 48)]
    assert (ours.double() - exact).norm() < 1.2 * (floats.double() - exact).norm()
    assert float((ours - floats).abs().max()) < 5e-5


def test_scores_are_the_same_with_the_integers_and_without(products: list) -> None:
    network = random_network(50, config=CONFIG)
    steps = integers(network, 100)
    sequences = [np.random.default_rng(0).integers(0, 50, 200)]
    with at_level(LEVEL):
        nats = [
            score_sequences(NetworkPredictor(network, steps=given), sequences, Policy(24, 12)).total()
            for given in (None, steps)
        ]
    assert products
    assert nats[0] == pytest.approx(nats[1], rel=1e-6)


def test_a_weight_that_was_changed_multiplies_as_it_is_now(products: list) -> None:
    network = random_network(50, config=CONFIG)
    steps = integers(network, 20)
    tokens_BT = torch.arange(20)[None]
    with at_level(LEVEL):
        predictor = NetworkPredictor(network, steps=steps)
        predictor.predict(tokens_BT, 0)
        products.clear()
        weight = dict(network.named_parameters())["depth.blocks.0.ffn.input.weight"]
        weight.mul_(2.0)
        doubled = predictor.predict(tokens_BT, 0)
        assert (192, 48) in products[:6]
        assert torch.allclose(doubled, NetworkPredictor(network).predict(tokens_BT, 0), atol=5e-5)
        products.clear()
        weight.add_(0.001)
        moved = predictor.predict(tokens_BT, 0)
        assert products.count((192, 48)) == 1
        assert torch.allclose(moved, NetworkPredictor(network).predict(tokens_BT, 0), atol=5e-5)


def test_gradients_half_precision_and_float64_are_left_to_torch(products: list) -> None:
    network = random_network(50, config=CONFIG)
    steps = integers(network, 20)
    tokens_BT = torch.arange(20)[None]
    with at_level(LEVEL):
        NetworkPredictor(network, torch.bfloat16, steps).predict(tokens_BT, 0)
        with CodedProducts(network, steps):
            network.requires_grad_()
            network.logits(network(tokens_BT).hidden_BTD).sum().backward()
        network.requires_grad_(False)
        NetworkPredictor(network.double(), steps=steps).predict(tokens_BT, 0)
    assert products == []


def test_where_bytes_are_slow_nothing_changes(products: list) -> None:
    network = random_network(50, config=CONFIG)
    steps = integers(network, 20)
    with at_level("portable"):
        NetworkPredictor(network, steps=steps).predict(torch.arange(20)[None], 0)
    assert products == []
