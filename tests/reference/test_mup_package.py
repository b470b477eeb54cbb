"""Our muP table against the `mup` package on the same network."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fairway.core.seed import generator
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.parts import Role
from fairway.optim.mup import parametrise, rule
from fairway.optim.optimizer.adamw import Config as AdamW
from fairway.optim.optimizer.sgd import Config as Sgd

mup = pytest.importorskip("mup")

ROLES = {
    "table.weight": Role.EMBEDDING,
    "norm.weight": Role.VECTOR,
    "up.weight": Role.MATRIX,
    "down.weight": Role.MATRIX,
    "head.weight": Role.HEAD,
}


class Network(nn.Module):
    """An embedding, a gain, two hidden matrices and a readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(40, width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)
        self.head = mup.MuReadout(width, 40, bias=False)


def prepared(width: int) -> Network:
    torch.manual_seed(0)
    network = Network(width)
    mup.set_base_shapes(network, Network(16), delta=Network(32))
    return network


@pytest.mark.parametrize("width", [16, 64, 256])
@pytest.mark.parametrize(("ours", "theirs"), [(AdamW(), mup.MuAdamW), (Sgd(), mup.MuSGD)])
def test_rates_and_decay_of_every_tensor_equal_the_package(width: int, ours: AdamW | Sgd, theirs: type) -> None:
    network, base = prepared(width), dict(Network(16).named_parameters())
    optimizer = theirs(network.parameters(), lr=0.1, weight_decay=0.3)
    groups = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        found = rule(ROLES[name], tuple(parameter.shape), tuple(base[name].shape), ours)
        assert groups[id(parameter)] == pytest.approx((0.1 * found.lr, 0.3 / found.lr)), name


@pytest.mark.parametrize("width", [64, 256])
def test_initial_deviations_equal_the_package(width: int) -> None:
    network = prepared(width)
    torch.manual_seed(0)
    plain, base = Network(width), dict(Network(16).named_parameters())
    for name, parameter in network.named_parameters():
        found = rule(ROLES[name], tuple(parameter.shape), tuple(base[name].shape), AdamW())
        torch.testing.assert_close(parameter, plain.get_parameter(name) * found.deviation, rtol=1e-6, atol=0)


def test_the_readout_is_divided_by_the_growth() -> None:
    network = prepared(64)
    x = torch.randn(5, 64)
    torch.testing.assert_close(network.head(x), x @ network.head.weight.T * (16 / 64), rtol=1e-5, atol=1e-6)


WIDTHS = (64, 128, 256, 512)


def transformer(width: int, **changes: Any) -> ModelConfig:
    mixer = {"kind": "attention", "heads": width // 8}
    return ModelConfig.read({"width": width, "depth": 2, "context": 16, "mixer": mixer} | changes)


def change_of_logits(model: LanguageModel, clear: Callable[[], object], step: Callable[[], object]) -> float:
    """Root mean square over four steps on one batch."""
    tokens_BT = torch.randint(0, 50, (4, 17), generator=generator(1))

    def logits() -> torch.Tensor:
        return model.logits(model(tokens_BT[:, :-1]).hidden_BTD)

    before = logits().detach()
    for _ in range(4):
        clear()
        functional.cross_entropy(logits().flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        step()
    return (logits().detach() - before).square().mean().sqrt().item()


def our_change(width: int, optimizer: AdamW) -> float:
    grown = parametrise(transformer(width), transformer(WIDTHS[0]), 50, optimizer)
    ours = optimizer.build(model := grown.build(50, seed=0), grown.scales)
    return change_of_logits(model, ours.zero_grad, lambda: ours.step(1.0, 0.0))


def their_change(width: int, optimizer: AdamW) -> float:
    """The same network with the package's rates and the factor of its shared readout."""
    shapes = transformer(width).build(50, seed=0)
    base, delta = (transformer(other).build(50, seed=0) for other in WIDTHS[:2])
    mup.set_base_shapes(shapes, base, delta=delta)
    growth = shapes.get_parameter("embedding.weight").infshape.width_mult()  # pyrefly: ignore[missing-attribute]
    model = transformer(width, head={"scale": 1.0 / growth}).build(50, seed=0)
    mup.set_base_shapes(model, base, delta=delta)
    settings = {"lr": optimizer.lr, "betas": (optimizer.beta1, optimizer.beta2), "eps": optimizer.eps}
    theirs = mup.MuAdamW(model.parameters(), weight_decay=0.0, **settings)
    return change_of_logits(model, theirs.zero_grad, theirs.step)


@pytest.mark.parametrize("lr", [0.0005, 0.003, 0.01])
def test_logits_of_a_tied_transformer_change_as_under_the_package(lr: float) -> None:
    optimizer = AdamW(lr=lr, weight_decay=0.0)
    ours, theirs = ([one(width, optimizer) for width in WIDTHS] for one in (our_change, their_change))
    assert ours == pytest.approx(theirs, rel=1e-4)
    slopes = [math.log2(after / before) for before, after in itertools.pairwise(ours)]
    if lr == 0.0005:  # a part made of the random initial table falls as 1/sqrt(width) beside one that stays
        assert slopes[0] < -0.15
        assert abs(slopes[-1]) < 0.05
    else:
        assert abs(sum(slopes) / len(slopes)) < 0.05
