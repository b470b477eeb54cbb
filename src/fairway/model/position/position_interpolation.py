"""Rotary positions squeezed into the trained range.

`m -> m / factor`: every frequency is divided by the factor. Chen et al. 2023.
"""

from fairway.core.config import Source
from fairway.model.parts import Position
from fairway.model.rotary import ExtendedConfig, Rotary

SOURCE = Source("Chen et al.", 2023, "arXiv:2306.15595")


class Config(ExtendedConfig):
    """Settings of position interpolation."""

    def build(self, head_width: int, context: int, width: int) -> Position:  # noqa: ARG002
        return PositionInterpolation(tuple(t / self.factor for t in self.plain_frequencies(head_width)), self)


class PositionInterpolation(Rotary):
    """`rotate(x_BHTK, positions_BT, length) -> x_BHTK`."""
