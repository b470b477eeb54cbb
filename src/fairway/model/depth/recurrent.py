"""A group of blocks applied several times, between blocks applied once (looped or recurrent depth).

`h_0 = prelude(x)`, `h_(t+1) = h_t + g_t .* (core(inject(h_t + e_t, h_0)) - h_t)`, output `coda(h_n)`: e_t tells the
loop, by a sinusoid times a learned scalar, 0 at first, or learned itself; g_t is a learned gain per feature, 1 at
first; injection adds a learned share of h_0, 0 at first, or mixes h_t and h_0 by a linear map that begins as h_t.
State is separate for each loop. Dehghani et al. 2019; injection after Geiping et al. 2025 (arXiv:2502.05171). Shape
key: B batch, T time, D width, L loops.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.linear import Linear
from fairway.model.parts import NO_CONTEXT, Aux, Context, Depth, DepthConfig, Role, State, joined, split_state
from fairway.model.stack import MakeBlock, StepSignal, run_blocks, state_bytes, stateful

SOURCE = Source("Dehghani et al.", 2019, "arXiv:1807.03819")


class Config(DepthConfig):
    """Settings of recurrent depth; `layers` counts applications of blocks during training."""

    prelude: int = Field(default=0, ge=0)
    """Blocks before the loop."""
    core: int = Field(default=1, ge=1)
    """Different blocks inside the loop."""
    coda: int = Field(default=0, ge=0)
    """Blocks after the loop."""
    step: Literal["none", "sinusoid", "learned"] = "sinusoid"
    """How the core is told which loop it is in."""
    inject: Literal["none", "add", "linear"] = "none"
    """How every loop sees the loop's input again."""
    gains: bool = False
    """Learn how much each loop changes each feature."""
    start_at: float = Field(default=0.0, ge=0, lt=1)
    """Share of training before which the core is applied once only."""
    test_loops: int | None = Field(default=None, ge=1)
    """Loops outside training; as many as in training if not given."""

    @model_validator(mode="after")
    def _loops_are_whole(self) -> "Config":
        rest = self.layers - self.prelude - self.coda
        if rest < self.core or rest % self.core:
            raise ValueError(
                f"{self.layers} layers less {self.prelude} before and {self.coda} after leave {rest} for loops over "
                f"{self.core} blocks; a positive multiple of {self.core} would work"
            )
        if self.test_loops is not None and self.test_loops > self.loops and (self.gains or self.step == "learned"):
            raise ValueError(
                f"test_loops {self.test_loops} is more than the {self.loops} loops of training, for which alone "
                "gains and learned steps exist; step sinusoid without gains would work"
            )
        return self

    @property
    def loops(self) -> int:
        """Applications of the core during training."""
        return (self.layers - self.prelude - self.coda) // self.core

    def build(self, make_block: MakeBlock, width: int) -> Depth:
        return Recurrent(make_block, width, self)


class Recurrent(Depth):
    """`forward(x_BTD, state, context) -> (x_BTD, state, aux)`; loops not run leave their state as it was."""

    def __init__(self, make_block: MakeBlock, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        layers, first = config.layers, config.prelude
        self.prelude = nn.ModuleList(make_block(layer, layers) for layer in range(first))
        self.core = nn.ModuleList(make_block(first + index, layers) for index in range(config.core))
        self.coda = nn.ModuleList(make_block(layer, layers) for layer in range(layers - config.coda, layers))
        shape = config.loops, width
        self.step_LD = nn.Parameter(torch.empty(shape)) if config.step == "learned" else None
        self.gain_LD = nn.Parameter(torch.empty(shape)) if config.gains else None
        self.inject_D = nn.Parameter(torch.empty(width)) if config.inject == "add" else None
        self.inject = Linear(width, width, gain=0.0) if config.inject == "linear" else None
        self.signal = StepSignal(width) if config.step == "sinusoid" else None

    def roles(self) -> dict[str, Role]:
        return {name: Role.VECTOR for name, _ in self.named_parameters(recurse=False)}

    def init_weights(self, generator: torch.Generator) -> None:
        if self.step_LD is not None:
            self.step_LD.normal_(0.0, 0.02, generator=generator)
        if self.gain_LD is not None:
            self.gain_LD.fill_(1.0)
        if self.inject_D is not None:
            self.inject_D.zero_()

    @property
    def most_loops(self) -> int:
        """Loops that the state has room for."""
        return max(self.config.loops, self.config.test_loops or 0)

    def loops(self, progress: float) -> int:
        """Loops to run now."""
        if not self.training:
            return self.config.test_loops or self.config.loops
        return self.config.loops if progress >= self.config.start_at else 1

    def empty_state(self, batch: int) -> State:
        core = joined(block.empty_state(batch) for block in stateful(self.core))
        before = joined(block.empty_state(batch) for block in stateful(self.prelude))
        after = joined(block.empty_state(batch) for block in stateful(self.coda))
        return (*before, *(core * self.most_loops), *after)

    def state_bytes(self, context: int) -> int:
        loops = self.loops(1.0)
        core = stateful(self.core)
        looped = loops * state_bytes(core, context) + (self.most_loops - loops) * state_bytes(core, 0)
        return state_bytes(stateful(self.prelude), context) + looped + state_bytes(stateful(self.coda), context)

    def flops(self, context: int) -> float:
        core = sum(block.flops(context) for block in stateful(self.core))
        inject = 0.0 if self.inject is None else self.inject.flops(context)
        once = sum(block.flops(context) for block in (*stateful(self.prelude), *stateful(self.coda)))
        return once + (core + inject) * self.loops(1.0)

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        prelude, core, coda = stateful(self.prelude), stateful(self.core), stateful(self.coda)
        before = split_state(state, [*prelude, *(core * self.most_loops), *coda])
        first, last = len(prelude), len(prelude) + self.most_loops * len(core)
        h_BTD, prelude_state, prelude_aux = run_blocks(prelude, x_BTD, _joined(before[:first]), context, "prelude")
        loops, start_BTD, repeats = self.loops(context.progress), h_BTD, []
        states = [prelude_state]
        for loop in range(self.most_loops):
            offset = first + loop * len(core)
            piece = _joined(before[offset : offset + len(core)])
            if loop < loops:
                y_BTD, after, aux = run_blocks(core, self._entry(h_BTD, start_BTD, loop), piece, context, "core")
                h_BTD = y_BTD if self.gain_LD is None else torch.lerp(h_BTD, y_BTD, self.gain_LD[loop].to(y_BTD.dtype))
                repeats.append(aux)
            else:
                after = joined(block.empty_state(len(x_BTD)) for block in core) if piece is None else piece
            states.append(after)
        h_BTD, coda_state, coda_aux = run_blocks(coda, h_BTD, _joined(before[last:]), context, "coda")
        return h_BTD, joined((*states, coda_state)), prelude_aux + Aux.of_repeats(repeats) + coda_aux

    def _entry(self, h_BTD: Tensor, start_BTD: Tensor, loop: int) -> Tensor:
        """What the core reads in one loop."""
        if self.signal is not None:
            h_BTD = self.signal(h_BTD, loop)
        elif self.step_LD is not None:
            h_BTD = h_BTD + self.step_LD[loop].to(h_BTD.dtype)
        if self.inject_D is not None:
            h_BTD = h_BTD + start_BTD * self.inject_D.to(h_BTD.dtype)
        return h_BTD if self.inject is None else h_BTD + self.inject(start_BTD)


def _joined(pieces: list[State | None]) -> State | None:
    """The states of several parts as one; None where there is none."""
    present = [piece for piece in pieces if piece is not None]
    return joined(present) if len(present) == len(pieces) and pieces else (None if pieces else ())
