"""No position at all: order is known from the causal mask, or from what other parts keep in their state.

Haviv et al. 2022.
"""

from fairway.core.config import Source
from fairway.model.parts import Position, PositionConfig

SOURCE = Source("Haviv et al.", 2022, "arXiv:2203.16634")


class Config(PositionConfig):
    """No settings."""

    def build(self, head_width: int, context: int, width: int) -> Position:  # noqa: ARG002
        return NoPosition()


class NoPosition(Position):
    """Leaves queries, keys and embeddings as they are."""
