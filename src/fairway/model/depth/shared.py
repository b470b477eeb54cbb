"""Blocks that share weights across layers (ALBERT): all of them, mixers alone, or feed-forwards alone, by groups.

`x_(l+1) = f_theta(x_l)`; the gradient of theta is the sum over its applications, and FLOPs are those of separate
layers. With G groups, consecutive layers of a group share; each group may hold `inner` blocks in turn. Norms and
scales of the residual branches are shared with the weights or kept by layer. State is separate for each
application. Lan et al. 2020. Shape key: B batch, T time, D width.
"""

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.block import Block
from fairway.model.parts import NO_CONTEXT, Aux, Context, Depth, DepthConfig, State, Stateful, joined
from fairway.model.stack import MakeBlock, run_blocks, state_bytes, stateful

SOURCE = Source("Lan et al.", 2020, "arXiv:1909.11942")


class Config(DepthConfig):
    """Settings of shared layers."""

    share: Literal["all", "attention", "ffn"] = "all"
    """What layers share; `attention` stands for whatever mixer is chosen."""
    groups: int = Field(default=1, ge=1)
    """Runs of consecutive layers with weights of their own."""
    inner: int = Field(default=1, ge=1)
    """Different blocks that a group applies in turn."""
    norms_per_layer: bool = False
    """Keep norms and branch scales separate where all else is shared."""

    @model_validator(mode="after")
    def _layers_split_evenly(self) -> "Config":
        if self.layers % (self.groups * self.inner):
            raise ValueError(
                f"{self.layers} layers cannot be split into {self.groups} groups of {self.inner} blocks in turn; "
                f"layers must be a multiple of {self.groups * self.inner}"
            )
        return self

    def build(self, make_block: MakeBlock, width: int) -> Depth:  # noqa: ARG002
        return Shared([make_block(layer, self.layers) for layer in range(self.layers)], self)

    def owner(self, layer: int) -> int:
        """The layer whose weights a layer uses."""
        per_group = self.layers // self.groups
        return layer // per_group * per_group + layer % per_group % self.inner


class Shared(Depth):
    """`forward(x_BTD, state, context) -> (x_BTD, state, aux)`.

    Every application is a block object of its own whose parts are those of the block it shares with, so a parameter
    has one owner, one name and one gradient, while FLOPs and states count each application.
    """

    def __init__(self, blocks: list[Stateful], config: Config) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        for layer, block in enumerate(blocks):
            if config.owner(layer) != layer:
                _share(block, blocks[config.owner(layer)], config)

    @property
    def parts(self) -> list[Stateful]:
        """The applications in order."""
        return stateful(self.blocks)

    def empty_state(self, batch: int) -> State:
        return joined(block.empty_state(batch) for block in self.parts)

    def state_bytes(self, context: int) -> int:
        return state_bytes(self.parts, context)

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        return run_blocks(self.parts, x_BTD, state, context)


def _share(block: Stateful, owner: Stateful, config: Config) -> None:
    """Replaces parts of a block by those of its owner."""
    assert isinstance(block, Block)
    assert isinstance(owner, Block)
    if config.share == "all" and not config.norms_per_layer:
        block.take_all_of(owner)
        return
    if config.share in ("all", "attention"):
        block.mixer = owner.mixer
    if config.share in ("all", "ffn"):
        block.ffn = owner.ffn
