"""All that a mixer promises, in one call, and mixers broken on purpose that must fail it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fairway.core.seed import generator
from fairway.model.norm.rms import Config as Rms
from fairway.model.parts import NO_CONTEXT, Context, Mixer, MixerConfig, PositionConfig, Site, State
from fairway.model.position.rope import Config as Rope
from laws import building, counting
from laws.state import (
    TOLERANCE,
    check_causal,
    check_isolation,
    check_remembers,
    check_split,
    check_split_gradients,
    check_state_bytes,
    runner,
)

WIDTH = 48
LENGTH = 19
BATCH = 2


def site(position: PositionConfig | None = None, context: int = 32) -> Site:
    """A place in the middle of a small model with rotary positions and RMSNorm."""
    return Site(layer=1, layers=3, context=context, position=position or Rope(), norm=Rms())


def sample(width: int = WIDTH, length: int = LENGTH, batch: int = BATCH, seed: int = 0) -> Tensor:
    """Random inputs (B, T, D) in float64."""
    return torch.randn(batch, length, width, generator=generator(seed, "sample"), dtype=torch.float64)


def check_mixer(
    config: MixerConfig,
    *,
    width: int = WIDTH,
    length: int = LENGTH,
    flops_range: tuple[float, float] = (0.4, 2.5),
    tolerance: float = TOLERANCE,
) -> None:
    """The whole contract of one mixer configuration, in float64."""

    def make() -> Mixer:
        return config.build(width, site())

    building.check_card(make)
    mixer = building.built(make)
    check_laws(mixer, length=length, width=width, tolerance=tolerance)
    if config.isolates_documents():
        check_isolation(mixer, sample(width, length), NO_CONTEXT, length // 2, tolerance=tolerance)
    one = sample(width, length, 1)
    check_state_bytes(mixer, runner(mixer, one, NO_CONTEXT), (1, 2, length))
    x = sample(width, length)
    counting.check_flops(mixer, lambda: mixer(x), BATCH, length, low=flops_range[0], high=flops_range[1])
    y, _ = mixer(x)
    weight = torch.randn(y.shape, generator=generator(1, "loss"), dtype=y.dtype)
    building.check_gradients(mixer, (y * weight).sum())
    check_half(make, width, length)


def check_laws(
    mixer: Mixer,
    *,
    width: int = WIDTH,
    length: int = LENGTH,
    context: Context = NO_CONTEXT,
    tolerance: float = TOLERANCE,
) -> None:
    """Split, gradients through the split, causality and memory."""
    x = sample(width, length).requires_grad_()
    run = runner(mixer, x, context)
    check_split(mixer, run, length, BATCH, tolerance=tolerance)
    check_split_gradients(mixer, run, length, x, tolerance=tolerance)
    check_causal(lambda value: mixer(value, None, context)[0], x.detach())
    check_remembers(lambda value: mixer(value, None, context)[0], x.detach())


def check_half(make: Callable[[], Mixer], width: int, length: int) -> None:
    """Under bfloat16 autocast outputs are finite and near those of float32, also when decoding."""
    mixer = building.built(make, dtype=torch.float32)
    x = sample(width, length).float()
    with torch.no_grad():
        exact, _ = mixer(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough, state = mixer(x[:, :-1])
            last, _ = mixer(x[:, -1:], state)
    error = (torch.cat((rough, last), 1).float() - exact).abs().max() / exact.abs().max()
    assert error < 0.1, f"half precision is off by {error:.2g} of the largest output"


class Faulty(Mixer):
    """A right mixer with one planted fault."""

    def __init__(self, inner: Mixer, fault: str) -> None:
        super().__init__()
        self.inner = inner
        self.fault = fault

    def empty_state(self, batch: int) -> State:
        return self.inner.empty_state(batch)

    def state_bytes(self, context: int) -> int:
        return self.inner.state_bytes(context) + (4 if self.fault == "miscounted state" else 0)

    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        if self.fault == "forgotten state":
            state = None
        if self.fault == "ignored documents":
            context = context.with_(starts_BT=None)
        y_BTD, after = self.inner(x_BTD, state, context)
        if self.fault == "future leak":
            y_BTD = y_BTD + 1e-4 * torch.cat((x_BTD[:, 1:], x_BTD[:, :1] * 0), dim=1)
        if self.fault == "detached state":
            after = tuple(tensor.detach() for tensor in after)
        if self.fault == "state in bf16":
            after = tuple(t.bfloat16().to(t.dtype) if t.is_floating_point() else t for t in after)
        if self.fault == "dropped remainder" and x_BTD.shape[1] % 4:
            whole = x_BTD.shape[1] - x_BTD.shape[1] % 4
            after = (
                self.inner(x_BTD[:, :whole], state, context)[1] if whole else (state or self.empty_state(len(x_BTD)))
            )
        if self.fault == "no memory":
            y_BTD = x_BTD * 2
        return y_BTD, after


STATE_FAULTS = ("future leak", "forgotten state", "detached state", "state in bf16", "dropped remainder", "no memory")


class UnfilledGain(nn.Module):
    """A parameter that nobody names or fills."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.empty(3))
