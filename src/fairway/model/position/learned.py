"""One learned vector for each position, added to the embedded input.

`x_m = x_m + P[m]`, m below the model's context; a later position is an error. Gehring et al. 2017.
Shape key: B batch, T time, D width.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Source
from fairway.core.errors import ConfigError
from fairway.model.parts import Position, PositionConfig, Role

SOURCE = Source("Gehring et al.", 2017, "arXiv:1705.03122")


class Config(PositionConfig):
    """Settings of learned positions."""

    deviation: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial table."""

    def build(self, head_width: int, context: int, width: int) -> Position:  # noqa: ARG002
        return Position()

    def build_input(self, context: int, width: int) -> Position | None:
        return LearnedPosition(context, width, self)


class LearnedPosition(Position):
    """`embed(x_BTD, positions_BT) -> x_BTD`."""

    def __init__(self, context: int, width: int, config: Config) -> None:
        super().__init__()
        self.deviation = config.deviation
        self.weight = nn.Parameter(torch.empty(context, width))

    def roles(self) -> dict[str, Role]:
        return {"weight": Role.EMBEDDING}

    def init_weights(self, generator: torch.Generator) -> None:
        self.weight.normal_(0.0, self.deviation, generator=generator)

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        longest = int(positions_BT.max()) + 1 if positions_BT.numel() else 0
        if longest > len(self.weight):
            raise ConfigError(
                f"{longest} tokens were given; learned positions end at the {len(self.weight)} tokens of the model's "
                "context. A shorter text, a larger model.context or rotary positions would work."
            )
        return x_BTD + functional.embedding(positions_BT, self.weight).to(x_BTD.dtype)
