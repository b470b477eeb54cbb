"""What every precision promises, for each technique found in the slot."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.config import Slot
from fairway.core.seed import generator
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.parts import Role, parameter_roles
from fairway.optim.optimizer.adamw import Config as AdamW
from fairway.train.numerics import Precision, PrecisionConfig

SLOT = Slot("fairway.train.precision", "bf16")
KINDS = SLOT.kinds()
CPU = torch.device("cpu")
SMALL = ModelConfig.read({"width": 32, "depth": 2, "context": 16, "mixer": {"kind": "attention", "heads": 2}})


def build(kind: str, model: LanguageModel) -> Precision:
    config = SLOT.config(kind).read({"kind": kind} | ({"only_where_fast": False} if kind == "bf16" else {}))
    assert isinstance(config, PrecisionConfig)
    return config.build(model, CPU)


def loss_of(model: LanguageModel, precision: Precision, tokens_BT: Tensor) -> Tensor:
    with precision.forward():
        hidden_BTD = model(tokens_BT[:, :-1]).hidden_BTD
        logits_BTV = model.logits(hidden_BTD)
    assert logits_BTV.dtype == torch.float32
    return functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())


def losses(kind: str, steps: int = 40) -> list[float]:
    model = SMALL.build(64, seed=0)
    precision = build(kind, model)
    optimizer = AdamW(lr=0.01).build(model)
    precision.attach(optimizer)
    tokens_BT = torch.randint(0, 64, (8, 17), generator=generator(1))
    series = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, precision, tokens_BT)
        precision.scale(loss).backward()
        precision.unscale(optimizer.parameters())
        precision.update(finite=True)
        optimizer.step(1.0, step / steps)
        precision.after_step()
        series.append(loss.item())
    return series


@pytest.mark.parametrize("kind", KINDS)
def test_every_precision_learns_a_batch_by_heart_like_float32(kind: str) -> None:
    series, reference = losses(kind), losses("fp32")
    assert series[0] == pytest.approx(math.log(64), abs=0.2)
    assert series[-1] < 0.5 * series[0]
    assert series[-1] == pytest.approx(reference[-1], abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_unscaled_losses_agree_with_float32(kind: str) -> None:
    tokens_BT = torch.randint(0, 64, (4, 17), generator=generator(2))
    gradients = []
    for name in ("fp32", kind):
        model = SMALL.build(64, seed=0)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator(3, parameter.numel()))
        precision = build(name, model)
        precision.attach(AdamW().build(model))
        precision.scale(loss_of(model, precision, tokens_BT)).backward()
        precision.unscale(model.parameters())
        gradients.append(torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None]))
    assert functional.cosine_similarity(*gradients, dim=0) > 0.99
    assert gradients[1].norm().item() == pytest.approx(gradients[0].norm().item(), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_routers_decays_and_vectors_stay_in_float32(kind: str) -> None:
    model = SMALL.build(64, seed=0)
    build(kind, model)
    small = {Role.ROUTER, Role.DECAY, Role.VECTOR, Role.SCALAR}
    roles = parameter_roles(model)
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if roles[name] in small)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_can_be_loaded_again(kind: str) -> None:
    first, second = (build(kind, SMALL.build(64, seed=0)) for _ in range(2))
    first.update(finite=False)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    assert all(torch.equal(tensor, second.state()[name]) for name, tensor in first.state().items())
