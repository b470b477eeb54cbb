"""Rotary positions whose base grows with the length seen.

For a length L' beyond the trained L, `base' = base * (factor L' / L - (factor - 1))^(d / (d - 2))`. The base
changes, so keys are cached as they were before rotation. L' is that of the query, `position + 1` rounded up to a
multiple of `step`: then the outputs do not depend on where a sequence is cut. Described in Peng et al. 2023.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from fairway.core.config import Source
from fairway.model.parts import Position
from fairway.model.rotary import ExtendedConfig, Frequencies, Rotary, frequencies

SOURCE = Source("Peng et al.", 2023, "arXiv:2309.00071")


class Config(ExtendedConfig):
    """Settings of dynamic NTK scaling."""

    factor: float = Field(default=1.0, ge=1)
    """How strongly the base grows; 1 keeps the slowest pair within its trained range."""
    step: int = Field(default=64, ge=1)
    """Tokens over which the base stays the same beyond the trained length."""

    def build(self, head_width: int, context: int, width: int) -> Position:  # noqa: ARG002
        if self.rotated(head_width) < 4:
            raise ValueError("one rotated pair has no slower one; dynamic NTK scaling needs two pairs at least")
        return DynamicNtk(head_width, self, self.trained_on(self.original, context))


class DynamicNtk(Rotary):
    """`rotate(x_BHTK, positions_BT, length) -> x_BHTK`; `length` is one that `span` names."""

    rotated_keys_stay_valid = False

    def __init__(self, head_width: int, config: Config, original: int) -> None:
        super().__init__(config.plain_frequencies(head_width), config)
        self.config = config
        self.rotated = config.rotated(head_width)
        self.original = original

    def span(self, positions_BT: Tensor) -> Tensor:
        step = self.config.step
        longer_BT = torch.div(positions_BT + step, step, rounding_mode="floor") * step
        return torch.where(positions_BT < self.original, self.original, longer_BT.clamp_min(self.original))

    def frequencies(self, length: int) -> Frequencies:
        if length <= self.original:
            return self.theta_R
        factor, d = self.config.factor, self.rotated
        grown = factor * length / self.original - (factor - 1)
        return frequencies(self.config.base * math.pow(grown, d / (d - 2)), d)
