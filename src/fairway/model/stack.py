"""Running blocks one after another, and telling the loops of a repeated block apart.

Shape key: B batch, T time, D width.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fairway.model.parts import Aux, Context, Part, Role, State, Stateful, split_state

MakeBlock = Callable[[int, int], Stateful]


def stateful(modules: nn.ModuleList) -> list[Stateful]:
    """The modules of a list as what they are."""
    return cast("list[Stateful]", list(modules))


def run_blocks(
    blocks: Sequence[Stateful], x_BTD: Tensor, state: State | None, context: Context, name: str = "blocks"
) -> tuple[Tensor, State, Aux]:
    """Applies blocks in order; auxiliary values get the names the blocks have in a list called `name`.

    Of the last block only the outputs from `context.first` on are returned.
    """
    pieces = split_state(state, blocks)
    inner = context if context.runner is None else context.with_(runner=None)
    states: list[Tensor] = []

    def run(start: int, stop: int, x_BTD: Tensor) -> tuple[Tensor, list[Aux]]:
        auxes = []
        for index in range(start, stop):
            here = inner if index + 1 == len(blocks) or not inner.first else inner.with_(first=0)
            x_BTD, after, aux = _call(blocks[index], x_BTD, pieces[index], here)
            auxes.append(aux.under(f"{name}.{index}"))
            if context.runner is None:
                states.extend(after)
        return x_BTD, auxes

    x_BTD, auxes = run(0, len(blocks), x_BTD) if context.runner is None else context.runner(len(blocks), run, x_BTD)
    losses: dict[str, Tensor] = {}
    statistics: dict[str, Tensor] = {}
    for aux in auxes:
        losses |= aux.losses
        statistics |= aux.statistics
    return x_BTD, tuple(states), Aux(losses, statistics)


def run_block(block: Stateful, x_BTD: Tensor, state: State | None, context: Context) -> tuple[Tensor, State, Aux]:
    """Applies one block, through the context's runner if there is one."""
    if context.runner is None:
        return _call(block, x_BTD, state, context)

    def run(start: int, stop: int, x_BTD: Tensor) -> tuple[Tensor, list[Aux]]:  # noqa: ARG001
        y_BTD, _, aux = _call(block, x_BTD, state, context.with_(runner=None))
        return y_BTD, [aux]

    x_BTD, auxes = context.runner(1, run, x_BTD)
    return x_BTD, (), auxes[0]


def _call(block: Stateful, x_BTD: Tensor, state: State | None, context: Context) -> tuple[Tensor, State, Aux]:
    if context.block_runner is None:
        return block(x_BTD, state, context)
    return context.block_runner(block, x_BTD, state, context.with_(block_runner=None))


def state_bytes(blocks: Iterable[Stateful], context: int) -> int:
    """Bytes of the decoding states of all blocks."""
    return sum(block.state_bytes(context) for block in blocks)


class StepSignal(Part):
    """Tells a repeated block which loop it is in: `forward(x_BTD, step) -> x_BTD + s e_step`.

    e is the sinusoid of `step_signal`, s a learned scalar that begins at zero: the stream may be much smaller than e.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.empty(()))

    def roles(self) -> dict[str, Role]:
        return {"scale": Role.SCALAR}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        self.scale.zero_()

    def forward(self, x_BTD: Tensor, step: int) -> Tensor:
        """The input with the signal of one step."""
        return x_BTD + step_signal(step, self.width, x_BTD) * self.scale.to(x_BTD.dtype)


def step_signal(step: int, width: int, like: Tensor) -> Tensor:
    """The sinusoid of loop `step`, (D,): sin and cos of `step / 10000^(2j/D)` at features 2j and 2j + 1.

    Dehghani et al. 2019 (arXiv:1807.03819), whose part for the position is left to the position technique.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    pair = torch.arange((width + 1) // 2, dtype=dtype, device=like.device)
    angle = step * torch.exp(-math.log(10_000.0) * 2 * pair / width)
    return torch.stack((angle.sin(), angle.cos()), dim=1).flatten()[:width].to(like.dtype)
