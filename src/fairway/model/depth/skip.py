"""Blocks with shortcuts: U-Net skips, a share of the embedded input in every layer, parallel branches in late layers.

The outputs of the first half are remembered and added, last first, to the inputs of the second half: `x = x + w .*
skip`, w one weight per feature, 1 at first. Before every layer `x = a .* x + b .* x_0`, a and b per feature, 1 and
0 at first, x_0 the embedded input. As in the baseline of OpenAI's Parameter Golf challenge; skips after Ronneberger
et al. 2015. Shape key: B batch, T time, D width, L layers, H skips.
"""

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.block import Block
from fairway.model.parts import (
    NO_CONTEXT,
    Aux,
    Context,
    Depth,
    DepthConfig,
    Role,
    State,
    Stateful,
    joined,
    split_state,
)
from fairway.model.stack import MakeBlock, run_block, state_bytes, stateful

SOURCE = Source("Ronneberger et al.", 2015, "arXiv:1505.04597")


class Config(DepthConfig):
    """Settings of shortcuts."""

    unet: bool = True
    """Add the outputs of the first half to the inputs of the second."""
    input_mix: bool = True
    """Mix the embedded input into every layer's input."""
    parallel_from: int | None = Field(default=None, ge=0)
    """Layers from this one on, counted from 0, run mixer and feed-forward side by side."""

    @model_validator(mode="after")
    def _layers_are_there(self) -> "Config":
        if self.unet and self.layers < 2:
            raise ValueError("one layer has no other to skip to; 2 or more would work, or unet: false")
        if self.parallel_from is not None and self.parallel_from >= self.layers:
            raise ValueError(f"parallel_from {self.parallel_from} lies behind the last layer, {self.layers - 1}")
        return self

    def build(self, make_block: MakeBlock, width: int) -> Depth:
        return Skip([make_block(layer, self.layers) for layer in range(self.layers)], width, self)


class Skip(Depth):
    """`forward(x_BTD, state, context) -> (x_BTD, state, aux)`."""

    def __init__(self, blocks: list[Stateful], width: int, config: Config) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.skips = len(blocks) // 2 if config.unet else 0
        self.skip_HD = nn.Parameter(torch.empty(self.skips, width)) if self.skips else None
        self.keep_LD = nn.Parameter(torch.empty(len(blocks), width)) if config.input_mix else None
        self.input_LD = nn.Parameter(torch.empty(len(blocks), width)) if config.input_mix else None
        for block in blocks[len(blocks) if config.parallel_from is None else config.parallel_from :]:
            assert isinstance(block, Block)
            block.run_in_parallel()

    def roles(self) -> dict[str, Role]:
        return {name: Role.VECTOR for name, _ in self.named_parameters(recurse=False)}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        if self.skip_HD is not None:
            self.skip_HD.fill_(1.0)
        if self.keep_LD is not None and self.input_LD is not None:
            self.keep_LD.fill_(1.0)
            self.input_LD.zero_()

    @property
    def parts(self) -> list[Stateful]:
        """The blocks in order."""
        return stateful(self.blocks)

    def empty_state(self, batch: int) -> State:
        return joined(block.empty_state(batch) for block in self.parts)

    def state_bytes(self, context: int) -> int:
        return state_bytes(self.parts, context)

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        blocks, remembered, states = self.parts, [], []
        auxes: list[Aux] = []
        start_BTD = x_BTD if context.embedded_BTD is None else context.embedded_BTD
        for layer, (block, piece) in enumerate(zip(blocks, split_state(state, blocks), strict=True)):
            if self.skip_HD is not None and layer >= len(blocks) - self.skips:
                weight_D = self.skip_HD[layer - len(blocks) + self.skips].to(x_BTD.dtype)
                x_BTD = torch.addcmul(x_BTD, remembered.pop(), weight_D)
            if self.keep_LD is not None and self.input_LD is not None:
                keep_D, input_D = (w_LD[layer].to(x_BTD.dtype) for w_LD in (self.keep_LD, self.input_LD))
                x_BTD = torch.addcmul(x_BTD * keep_D, start_BTD.to(x_BTD.dtype), input_D)
            x_BTD, after, aux = run_block(block, x_BTD, piece, context)
            if layer < self.skips:
                remembered.append(x_BTD)
            states.append(after)
            auxes.append(aux.under(f"blocks.{layer}"))
        return x_BTD, joined(states), Aux.of_repeats(auxes)
