"""Every feed-forward that stands in its folder keeps the law of state, is causal, and counts its work."""

import pytest
import torch
from torch import Tensor

from fairway.core.config import Slot
from fairway.model.parts import NO_CONTEXT, Aux, Context, Ffn, FfnConfig, State
from laws import building, counting
from laws.mixers import BATCH, LENGTH, WIDTH, sample, site
from laws.models import technique
from laws.state import (
    check_causal,
    check_isolation,
    check_split,
    check_split_gradients,
    check_state_bytes,
    runner,
)

SLOT = Slot("fairway.model.ffn", "relu2")


def make(kind: str) -> Ffn:
    config = SLOT.config(kind).model_validate(technique(kind))
    assert isinstance(config, FfnConfig)
    return config.build(WIDTH, site())


def check_ffn(ffn: Ffn) -> None:
    """Everything a feed-forward promises about time."""
    x = sample().requires_grad_()
    run = runner(ffn, x, NO_CONTEXT)
    check_split(ffn, run, LENGTH, BATCH)
    check_split_gradients(ffn, run, LENGTH, x)
    check_causal(lambda value: ffn(value)[0], x.detach())
    check_state_bytes(ffn, runner(ffn, sample(batch=1), NO_CONTEXT), (1, 5))
    if ffn.empty_state(1):
        check_isolation(ffn, x.detach(), NO_CONTEXT, 9)


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_every_feedforward_has_its_card(kind: str) -> None:
    building.check_card(lambda: make(kind))


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_every_feedforward_keeps_the_law_of_state(kind: str) -> None:
    check_ffn(building.built(lambda: make(kind)))


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_a_feedforward_with_auxiliary_values_says_that_it_needs_whole_sequences(kind: str) -> None:
    ffn = building.built(lambda: make(kind)).train()
    assert isinstance(ffn, Ffn)
    assert ffn(sample())[2] == Aux() or ffn.needs_whole_sequences()


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_every_feedforward_counts_its_work(kind: str) -> None:
    ffn = building.built(lambda: make(kind))
    counting.check_flops(ffn, lambda: ffn(sample()), BATCH, LENGTH, low=0.9, high=1.1)


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_every_parameter_of_a_feedforward_learns(kind: str) -> None:
    ffn = building.built(lambda: make(kind))
    y, _, aux = ffn(sample())
    building.check_gradients(ffn, (y * sample(seed=2)).sum() + aux.loss())


class LeakyFfn(Ffn):
    """A feed-forward that looks at the next token."""

    def __init__(self, inner: Ffn, *, ahead: bool) -> None:
        super().__init__()
        self.inner = inner
        self.ahead = ahead

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        y_BTD, after, aux = self.inner(x_BTD, state, context)
        moved = torch.roll(x_BTD, -1 if self.ahead else 1, dims=1)
        return y_BTD + 1e-3 * moved, after, aux


@pytest.mark.parametrize("ahead", [True, False])
def test_a_feedforward_that_looks_aside_without_state_is_noticed(ahead: bool) -> None:
    with pytest.raises(AssertionError):
        check_ffn(LeakyFfn(building.built(lambda: make("relu2")), ahead=ahead))
