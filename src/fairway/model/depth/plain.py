"""Blocks one after another, each with its own weights.

`x_(l+1) = block_l(x_l)`. Shape key: B batch, T time, D width.
"""

from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.parts import NO_CONTEXT, Aux, Context, Depth, DepthConfig, State, Stateful, joined
from fairway.model.stack import MakeBlock, run_blocks, state_bytes, stateful

SOURCE = Source("Vaswani et al.", 2017, "arXiv:1706.03762")


class Config(DepthConfig):
    """Settings of a plain stack."""

    def build(self, make_block: MakeBlock, width: int) -> Depth:  # noqa: ARG002
        return Plain([make_block(layer, self.layers) for layer in range(self.layers)])


class Plain(Depth):
    """`forward(x_BTD, state, context) -> (x_BTD, state, aux)`."""

    leaves_out = True

    def __init__(self, blocks: list[Stateful]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

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
        return run_blocks(self.parts, x_BTD, state, context)
