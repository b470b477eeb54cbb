"""The scaling of Llama 3.1: slow pairs are interpolated, fast ones kept, those between blended by wavelength.

Wavelengths `2 pi / theta` above `L / low` are stretched by the factor, below `L / high` kept; between, `theta' = (1
- g) theta / s + g theta` with `g = (L theta / (2 pi) - low) / (high - low)`. Grattafiori et al. 2024.
"""

import math

from pydantic import Field, model_validator

from fairway.core.config import Source
from fairway.model.parts import Position
from fairway.model.rotary import ExtendedConfig, Rotary

SOURCE = Source("Grattafiori et al.", 2024, "arXiv:2407.21783")


class Config(ExtendedConfig):
    """Settings of the Llama 3.1 scaling."""

    low: float = Field(default=1.0, gt=0)
    """Pairs that make fewer turns over the trained length are interpolated in full."""
    high: float = Field(default=4.0, gt=0)
    """Pairs that make more turns are left as they are."""

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> "Config":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be less than high {self.high}")
        return self

    def build(self, head_width: int, context: int, width: int) -> Position:  # noqa: ARG002
        original = self.trained_on(self.original, context)
        scaled = (self._scaled(theta, original) for theta in self.plain_frequencies(head_width))
        return Llama3(tuple(scaled), self)

    def _scaled(self, theta: float, original: int) -> float:
        turns = original * theta / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - self.low) / (self.high - self.low)))
        return (1 - kept) * theta / self.factor + kept * theta


class Llama3(Rotary):
    """`rotate(x_BHTK, positions_BT, length) -> x_BHTK`."""
