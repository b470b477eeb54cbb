"""Every depth technique keeps the law of state outside training, isolates documents, and counts each application."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.core.config import Slot
from fairway.model.lm import LanguageModel
from fairway.model.parts import NO_CONTEXT, Aux, Context, Depth, Part, State
from laws import building, counting
from laws.mixers import BATCH, LENGTH, WIDTH, sample
from laws.models import VOCABULARY, built_model, model_config, model_runner, sample_tokens, technique
from laws.state import (
    assert_close,
    check_causal,
    check_isolation,
    check_remembers,
    check_split,
    check_split_gradients,
    check_state_bytes,
    runner,
)

SLOT = Slot("fairway.model.depth", "plain")
VARIANTS: list[dict[str, Any]] = [
    technique("shared", share="attention"),
    technique("shared", share="ffn", layers=4, groups=2),
    technique("shared", layers=4, inner=2, norms_per_layer=True),
    technique("recurrent", layers=4, prelude=1, coda=1, step="learned", gains=True, inject="linear"),
    technique("recurrent", layers=2, inject="add", test_loops=3),
    technique("act", mode="ut", frozen=True, eps=0.2),
    technique("skip", layers=4, parallel_from=2),
    technique("mixture_of_depths", decide="predictor", gate="sigmoid"),
    technique("mixture_of_depths", layers=3, interval=1, gate="twice_sigmoid"),
    technique("mixture_of_depths", layers=4, route="random", capacity=0.3),
]
ALL = [*(technique(kind) for kind in SLOT.kinds()), *VARIANTS]
NAMED = pytest.mark.parametrize("settings", ALL, ids=[f"{s['kind']}{i}" for i, s in enumerate(ALL)])


def depth_of(settings: dict[str, Any]) -> Depth:
    config = model_config(depth=settings, mixer={"kind": "attention", "heads": 3})
    return LanguageModel(config, VOCABULARY).depth


@NAMED
def test_every_depth_has_its_card(settings: dict[str, Any]) -> None:
    building.check_card(lambda: depth_of(settings))


@NAMED
def test_every_depth_keeps_the_law_of_state_outside_training(settings: dict[str, Any]) -> None:
    check_depth(building.built(lambda: depth_of(settings)).eval())


@NAMED
def test_a_depth_says_whether_it_looks_ahead_in_training(settings: dict[str, Any]) -> None:
    depth = building.built(lambda: depth_of(settings)).train()
    x = 3 * sample()
    changed = x.clone()
    changed[:, -3:] *= -7
    with torch.no_grad():
        past, past_of_changed = depth(x)[0][:, :-3], depth(changed)[0][:, :-3]
    sees = not torch.allclose(past, past_of_changed, rtol=0, atol=1e-9)
    assert sees == any(module.looks_ahead() for module in depth.modules() if isinstance(module, Part))


def check_depth(depth: Depth) -> None:
    """Split, gradients through the split, causality, memory."""
    x = (3 * sample()).requires_grad_()
    run = runner(depth, x, NO_CONTEXT)
    check_split(depth, run, LENGTH, BATCH)
    check_split_gradients(depth, run, LENGTH, x)
    check_causal(lambda value: depth(value)[0], x.detach())
    check_remembers(lambda value: depth(value)[0], x.detach())


@NAMED
def test_every_depth_isolates_documents(settings: dict[str, Any]) -> None:
    depth = building.built(lambda: depth_of(settings)).eval()
    check_isolation(depth, 3 * sample(), NO_CONTEXT, 9)


@NAMED
def test_state_bytes_of_every_depth_are_real(settings: dict[str, Any]) -> None:
    if settings["kind"] == "mixture_of_depths":
        decide = "router" if settings.get("route") == "random" else "predictor"
        settings = {**settings, "capacity": 1.0, "decide": decide}
    depth = building.built(lambda: depth_of(settings)).eval()
    for name, parameter in depth.named_parameters():
        if "predictor" in name:
            parameter.data.abs_()
    x = sample(batch=1).abs()
    check_state_bytes(depth, runner(depth, x, NO_CONTEXT), (1, 2, 7))


@NAMED
def test_every_depth_counts_each_application(settings: dict[str, Any]) -> None:
    depth = building.built(lambda: depth_of(settings)).train()
    if settings.get("test_loops"):
        depth.eval()
    counting.check_flops(depth, lambda: depth(sample()), BATCH, LENGTH, low=0.75, high=1.1)


@NAMED
def test_every_parameter_of_a_depth_learns(settings: dict[str, Any]) -> None:
    depth = building.built(lambda: depth_of(settings)).train()
    y, _, aux = depth(sample())
    building.check_gradients(depth, (y * sample(seed=2)).sum() + aux.loss())


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_models_keep_the_law_with_every_depth(kind: str) -> None:
    model = built_model(model_config(depth=technique(kind), embedding={"kind": "value", "smear": True})).eval()
    tokens = sample_tokens()
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, 6] = starts[0, 11] = True
    check_split(model, model_runner(model, tokens, starts), tokens.shape[1], 2)


class FaultyDepth(Depth):
    """A right depth technique with one planted fault."""

    def __init__(self, inner: Depth, fault: str) -> None:
        super().__init__()
        self.inner = inner
        self.fault = fault

    def empty_state(self, batch: int) -> State:
        return self.inner.empty_state(batch)

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        if self.fault == "one state for all applications" and state is not None:
            half = len(state) // 2
            state = (*state[:half], *state[:half])
        y_BTD, after, aux = self.inner(x_BTD, None if self.fault == "forgotten state" else state, context)
        return (y_BTD + 1e-4 * x_BTD.mean(1, keepdim=True) if self.fault == "future leak" else y_BTD), after, aux


@pytest.mark.parametrize("fault", ["one state for all applications", "forgotten state", "future leak"])
def test_a_fault_planted_into_a_depth_is_noticed(fault: str) -> None:
    depth = building.built(lambda: depth_of(technique("plain"))).eval()
    with pytest.raises(AssertionError):
        check_depth(FaultyDepth(depth, fault))


def test_blocks_of_width_and_order_are_made_as_the_technique_says() -> None:
    depth = building.opened(lambda: depth_of(technique("plain")))
    x = sample()
    by_hand = x
    for block in depth.parts:
        by_hand, _, _ = block(by_hand)
    assert_close(depth(x)[0], by_hand, 1e-12, f"{WIDTH} wide blocks in order")
