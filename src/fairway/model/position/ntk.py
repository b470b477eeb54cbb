"""Rotary positions with a larger base: fast pairs keep their speed, the slowest is slowed by the whole factor.

`base' = base * factor^(d / (d - 2))` over d rotated features. Known as NTK-aware scaling; described in Peng et al.
2023.
"""

from fairway.core.config import Source
from fairway.model.parts import Position
from fairway.model.rotary import ExtendedConfig, Rotary, frequencies

SOURCE = Source("Peng et al.", 2023, "arXiv:2309.00071")


class Config(ExtendedConfig):
    """Settings of NTK-aware scaling."""

    def build(self, head_width: int, context: int, width: int) -> Position:  # noqa: ARG002
        rotated = self.rotated(head_width)
        if rotated < 4:
            raise ValueError(f"{rotated} rotated features hold one pair; NTK scaling needs two pairs at least")
        return Ntk(frequencies(self.base * self.factor ** (rotated / (rotated - 2)), rotated), self)


class Ntk(Rotary):
    """`rotate(x_BHTK, positions_BT, length) -> x_BHTK`."""
