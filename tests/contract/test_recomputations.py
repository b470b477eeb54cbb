"""What every recomputation promises, for each technique found in the slot, on every way of stacking blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.config import Slot
from fairway.core.seed import generator
from fairway.model.block import Block
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.train.numerics import RecomputeConfig
from fairway.train.recomputation import measure
from fairway.train.recompute.none import Config as Nothing

SLOT = Slot("fairway.train.recompute", "none")
KINDS = SLOT.kinds()
BASE = {"width": 32, "depth": 4, "context": 32, "mixer": {"kind": "attention", "heads": 2}}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "experts": {"ffn": {"kind": "moe", "experts": 4, "top": 2}},
    "shared": {"depth": {"kind": "shared", "layers": 4, "groups": 2}},
    "recurrent": {"depth": {"kind": "recurrent", "layers": 6, "prelude": 1, "core": 2, "coda": 1}},
    "skips": {"depth": {"kind": "skip", "layers": 4}},
    "halting": {"depth": {"kind": "act", "layers": 4}},
    "routed": {"depth": {"kind": "mixture_of_depths", "layers": 4}},
    "ttt": {"mixer": {"kind": "ttt_linear", "heads": 2, "mini_batch": 8}},
}


def config_of(kind: str) -> RecomputeConfig:
    config = SLOT.config(kind).read({"kind": kind})
    assert isinstance(config, RecomputeConfig)
    return config


def built(name: str, kind: str) -> LanguageModel:
    model = ModelConfig.read(BASE | MODELS[name]).build(64, seed=0)
    for index, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator(4, index))
    config_of(kind).apply(model)
    return model.train()


def gradients(model: LanguageModel, autocast: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    torch.manual_seed(7)
    tokens_BT = torch.randint(0, 64, (4, 33), generator=generator(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(tokens_BT[:, :-1])
        logits_BTV = model.logits(output.hidden_BTD)
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten()) + output.aux.loss()
    loss.backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return found, output.aux.statistics | output.aux.losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_and_auxiliary_values_are_bit_equal(kind: str, name: str, autocast: bool) -> None:
    expected, expected_aux = gradients(built(name, "none"), autocast)
    found, aux = gradients(built(name, kind), autocast)
    assert len(found) == len(expected) > 4
    assert all(map(torch.equal, found, expected))
    assert set(aux) == set(expected_aux)
    assert all(torch.equal(value, expected_aux[key]) for key, value in aux.items())


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"none", "offload", "selective"}))
@pytest.mark.parametrize("name", MODELS)
def test_every_depth_really_computes_blocks_again(kind: str, name: str) -> None:
    def evaluations(model: LanguageModel) -> int:
        calls: list[object] = []
        for module in model.modules():
            if isinstance(module, Block):
                module.register_forward_pre_hook(lambda module, inputs: calls.append(module))  # noqa: ARG005
        gradients(model, autocast=False)
        return len(calls)

    assert evaluations(built(name, "none")) == model_layers(name)
    assert evaluations(built(name, kind)) > model_layers(name) + 1


def model_layers(name: str) -> int:
    return ModelConfig.read(BASE | MODELS[name]).depth.layers


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_and_decoding_are_left_alone(kind: str) -> None:
    model = built("plain", kind).eval()
    tokens_BT = torch.randint(0, 64, (2, 8), generator=generator(2))
    with torch.no_grad():
        whole = model(tokens_BT)
        first = model(tokens_BT[:, :5])
        second = model(tokens_BT[:, 5:], first.state)
    torch.testing.assert_close(second.hidden_BTD, whole.hidden_BTD[:, 5:], rtol=1e-4, atol=1e-5)
    assert len(whole.state) == len(model.empty_state(2))


@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_is_at_most_the_memory_of_keeping_everything(kind: str) -> None:
    costs = measure(built("plain", "none"), torch.randint(0, 64, (4, 32), generator=generator(3)))
    prediction = config_of(kind).predict(costs)
    assert 0 < prediction.bytes <= Nothing().predict(costs).bytes
    assert prediction.work >= 0
