"""Weights without masters: what stalls, what does not, and what stays in float32."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fairway.core.seed import generator
from fairway.model.parts import Part, Role
from fairway.optim.optimizer.adamw import Config as AdamW
from fairway.optim.parts import Optimizer
from fairway.train.precision.bf16_pure import Config

Kind = Literal["stochastic", "kahan", "nearest"]
CPU = torch.device("cpu")


class Offset(Part):
    """A matrix near one and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(1.0 + 0.1 * torch.rand(32, 32, generator=generator(0)))
        self.gain = nn.Parameter(torch.ones(32))
        self.router = nn.Parameter(torch.ones(4, 32))
        self.decay = nn.Parameter(torch.ones(32))

    def roles(self) -> dict[str, Role]:
        others = {"gain": Role.VECTOR, "router": Role.ROUTER, "decay": Role.DECAY}
        return {"weight": Role.MATRIX, **others}

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight) * self.gain


def prepared(kind: Kind, lr: float = 1e-4) -> tuple[Offset, Optimizer]:
    model = Offset()
    precision = Config(rounding=kind).build(model, CPU)
    optimizer = AdamW(lr=lr, weight_decay=0.0).build(model)
    precision.attach(optimizer)
    return model, optimizer


def distance_travelled(kind: Kind, steps: int = 300) -> float:
    """How far the weights come under a constant gradient, as a share of what the learning rate asks for."""
    model, optimizer = prepared(kind)
    before = model.weight.detach().float().clone()
    model.weight.grad = torch.ones_like(model.weight)
    for step in range(steps):
        optimizer.step(1.0, step / steps)
    return (before - model.weight.detach().float()).mean().item() / (steps * 1e-4)


def test_updates_below_half_a_unit_are_lost_to_nearest_rounding_alone() -> None:
    assert distance_travelled("nearest") == 0.0
    assert distance_travelled("stochastic") == pytest.approx(1.0, abs=0.05)
    assert distance_travelled("kahan") == pytest.approx(1.0, abs=0.05)


def test_only_large_tables_are_halved() -> None:
    model, _ = prepared("stochastic")
    assert model.weight.dtype == torch.bfloat16
    assert {model.gain.dtype, model.router.dtype, model.decay.dtype} == {torch.float32}


@pytest.mark.parametrize("kind", ["stochastic", "kahan"])
def test_a_resumed_run_rounds_the_same_way(kind: Kind) -> None:
    def run(model: Offset, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator(5, name, step))
                parameter.grad = noise.to(parameter.dtype)
            optimizer.step(1.0, step / 8)

    straight, one = prepared(kind, lr=0.01)
    run(straight, one, range(8))
    first, two = prepared(kind, lr=0.01)
    run(first, two, range(4))
    second, three = prepared(kind, lr=0.01)
    second.load_state_dict(first.state_dict())
    three.load_state({name: tensor.clone() for name, tensor in two.state().items()})
    run(second, three, range(4, 8))
    for name, value in straight.named_parameters():
        assert torch.equal(value, second.get_parameter(name)), name
