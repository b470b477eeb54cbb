"""Rotary position embedding.

Pair i of a head is turned by `m theta_i` at position m, `theta_i = base^(-2i/d)`, so a score depends on the distance of
query and key alone. Su et al. 2021.
"""

from fairway.core.config import Source
from fairway.model.parts import Position
from fairway.model.rotary import Rotary, RotaryConfig

SOURCE = Source("Su et al.", 2021, "arXiv:2104.09864")


class Config(RotaryConfig):
    """Settings of rotary positions."""

    def build(self, head_width: int, context: int, width: int) -> Position:  # noqa: ARG002
        return Rope(self.plain_frequencies(head_width), self)


class Rope(Rotary):
    """`rotate(x_BHTK, positions_BT, length) -> x_BHTK`."""
