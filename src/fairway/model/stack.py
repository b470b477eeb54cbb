"""Running blocks one after another, and telling the loops of a repeated block apart.

Shape key: B batch, T time, D width.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fairway.model.parts import Aux, Context, State, Stateful, split_state

MakeBlock = Callable[[int, int], Stateful]


def stateful(modules: nn.ModuleList) -> list[Stateful]:
    """The modules of a list as what they are."""
    return cast("list[Stateful]", list(modules))


def run_blocks(
    blocks: Sequence[Stateful], x_BTD: Tensor, state: State | None, context: Context, name: str = "blocks"
) -> tuple[Tensor, State, Aux]:
    """Applies blocks in order; auxiliary values get the names the blocks have in a list called `name`."""
    states: list[Tensor] = []
    losses: dict[str, Tensor] = {}
    statistics: dict[str, Tensor] = {}
    for index, (block, piece) in enumerate(zip(blocks, split_state(state, blocks), strict=True)):
        x_BTD, after, aux = block(x_BTD, piece, context)
        named = aux.under(f"{name}.{index}")
        losses |= named.losses
        statistics |= named.statistics
        states.extend(after)
    return x_BTD, tuple(states), Aux(losses, statistics)


def state_bytes(blocks: Iterable[Stateful], context: int) -> int:
    """Bytes of the decoding states of all blocks."""
    return sum(block.state_bytes(context) for block in blocks)


def step_signal(step: int, width: int, like: Tensor) -> Tensor:
    """The sinusoid of loop `step`, (D,): sin and cos of `step / 10000^(2j/D)` at features 2j and 2j + 1.

    Dehghani et al. 2019 (arXiv:1807.03819), whose part for the position is left to the position technique.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    pair = torch.arange((width + 1) // 2, dtype=dtype, device=like.device)
    angle = step * torch.exp(-math.log(10_000.0) * 2 * pair / width)
    return torch.stack((angle.sin(), angle.cos()), dim=1).flatten()[:width].to(like.dtype)
