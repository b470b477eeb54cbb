"""Adaptive computation time: one block applied to each token until a learned halting probability is spent.

At step n, `p = sigmoid(w . h + b)` of the state before it. A token goes on while its sum of p stays at most 1 -
eps; at its last step it gives the remainder R = 1 - sum. Output, by `mode`: `graves` `sum_n u_n h_n`, whose weights
u sum to one (Graves 2016); `ut` the running `a = u h + (1 - u) a` of the published Universal Transformer (Dehghani
et al. 2019), whose weights do not. A token still running at the last step gives what is left. Loss: `ponder *
mean(N + R)`, with gradient through R alone. Every token passes through all steps, since later tokens attend to its
states; halting weighs them and, with `frozen`, stops them from changing, but saves no FLOPs. State is separate for
each step. Shape key: B batch, T time, D width.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.parts import NO_CONTEXT, Aux, Context, Depth, DepthConfig, Role, State, Stateful, joined
from fairway.model.stack import MakeBlock, StepSignal, run_block

SOURCE = Source("Graves", 2016, "arXiv:1603.08983")


class Config(DepthConfig):
    """Settings of adaptive computation time; `layers` is the largest number of steps."""

    mode: Literal["graves", "ut"] = "graves"
    """How the states of the steps become the output."""
    eps: float = Field(default=0.01, gt=0, lt=0.5)
    """A token halts when less than this of its probability would be left."""
    ponder: float = Field(default=0.01, ge=0)
    """Weight of the ponder loss."""
    bias: float = 1.0
    """Initial bias of the halting probability; larger halts earlier."""
    frozen: bool = False
    """Leave the state of a halted token as it is, in the place of transforming it further."""
    step: Literal["none", "sinusoid"] = "sinusoid"
    """How the block is told which step it is in."""

    def build(self, make_block: MakeBlock, width: int) -> Depth:
        return AdaptiveTime(make_block(0, self.layers), width, self)


class AdaptiveTime(Depth):
    """`forward(x_BTD, state, context) -> (x_BTD, state, aux)`."""

    def __init__(self, block: Stateful, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.block = block
        self.width = width
        self.signal = StepSignal(width) if config.step == "sinusoid" else None
        self.halt_D = nn.Parameter(torch.empty(width))
        self.halt_bias = nn.Parameter(torch.empty(()))

    def roles(self) -> dict[str, Role]:
        return {"halt_D": Role.VECTOR, "halt_bias": Role.SCALAR}

    def init_weights(self, generator: torch.Generator) -> None:
        self.halt_D.normal_(0.0, 0.1 * self.width**-0.5, generator=generator)
        self.halt_bias.fill_(self.config.bias)

    def empty_state(self, batch: int) -> State:
        return self.block.empty_state(batch) * self.config.layers

    def state_bytes(self, context: int) -> int:
        return self.block.state_bytes(context) * self.config.layers

    def flops(self, context: int) -> float:
        return (self.block.flops(context) + 2.0 * self.width) * self.config.layers

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        count = len(self.block.empty_state(1))
        halting = Halting(x_BTD, self.config.eps)
        h_BTD, output_BTD, states, auxes = x_BTD, torch.zeros_like(x_BTD), [], []
        for step in range(self.config.layers):
            p_BT = self._probability(h_BTD)
            running_BT = halting.running_BT
            weight_BT = halting.step(p_BT, last=step == self.config.layers - 1)
            entry = h_BTD if self.signal is None else self.signal(h_BTD, step)
            piece = None if state is None else state[step * count : (step + 1) * count]
            y_BTD, after, aux = run_block(self.block, entry, piece, context)
            h_BTD = torch.where(running_BT[..., None], y_BTD, h_BTD) if self.config.frozen else y_BTD
            weight = weight_BT[..., None].to(y_BTD.dtype)
            if self.config.mode == "graves":
                output_BTD = output_BTD + weight * h_BTD
            else:
                output_BTD = torch.lerp(output_BTD, h_BTD.to(output_BTD.dtype), weight)
            states.append(after)
            auxes.append(aux.under("block"))
        return output_BTD, joined(states), Aux.of_repeats(auxes) + self._pondering(halting)

    def _probability(self, h_BTD: Tensor) -> Tensor:
        """Halting probability in float32 at least."""
        dtype = torch.promote_types(h_BTD.dtype, torch.float32)
        score_BT = (h_BTD.to(dtype) * self.halt_D.to(dtype)).sum(-1)
        return torch.sigmoid(score_BT + self.halt_bias.to(dtype))

    def _pondering(self, halting: "Halting") -> Aux:
        steps, remainder = halting.steps_BT.mean(), halting.remainder_BT.mean()
        statistics = {"steps": steps.detach(), "remainder": remainder.detach()}
        return Aux({"ponder": self.config.ponder * (steps + remainder)}, statistics)


class Halting:
    """The books of one pass: what each token has spent, its remainder, and how many steps it took."""

    def __init__(self, x_BTD: Tensor, eps: float) -> None:
        zero_BT = x_BTD.new_zeros(x_BTD.shape[:2], dtype=torch.promote_types(x_BTD.dtype, torch.float32))
        self.threshold = 1.0 - eps
        self.spent_BT = self.remainder_BT = self.steps_BT = zero_BT
        self.running_BT = torch.ones_like(zero_BT, dtype=torch.bool)

    def step(self, p_BT: Tensor, *, last: bool) -> Tensor:
        """The weight of this step's state for every token; zero once it has halted."""
        active_BT = self.running_BT
        over_BT = self.spent_BT + p_BT > self.threshold
        halts_BT, self.running_BT = active_BT & over_BT, active_BT & ~over_BT
        used_BT = p_BT * self.running_BT
        self.spent_BT = self.spent_BT + used_BT
        rest_BT = (1.0 - self.spent_BT) * (halts_BT | self.running_BT if last else halts_BT)
        self.remainder_BT = self.remainder_BT + rest_BT
        self.steps_BT = self.steps_BT + active_BT
        return used_BT + rest_BT
