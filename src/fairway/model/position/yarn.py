"""YaRN: slow pairs are interpolated, fast ones kept, and attention is sharpened.

`theta' = (1 - gamma) theta / s + gamma theta`. With `ramp: rotations`, gamma rises from 0 at alpha to 1 at beta
turns over the trained length, `r_i = L theta_i / (2 pi)`. With `ramp: index`, gamma falls linearly in the pair's
index between the pairs that make beta and alpha turns, rounded outwards if `truncate`. Cosine and sine of queries
and keys are both multiplied by `0.1 ln s + 1`, so scores by its square. Peng et al. 2023; the second ramp is that
of its published code.
"""

import math
from typing import Literal

from pydantic import Field, model_validator

from fairway.core.config import Source
from fairway.model.parts import Position
from fairway.model.rotary import ExtendedConfig, Frequencies, Rotary

SOURCE = Source("Peng et al.", 2023, "arXiv:2309.00071")


class Config(ExtendedConfig):
    """Settings of YaRN."""

    alpha: float = Field(default=1.0, gt=0)
    """Pairs that make fewer turns over the trained length are interpolated in full."""
    beta: float = Field(default=32.0, gt=0)
    """Pairs that make more turns are left as they are."""
    ramp: Literal["rotations", "index"] = "rotations"
    """What the blend between the two is linear in."""
    truncate: bool = True
    """Round the ends of the index ramp to whole pairs."""
    temperature: bool = True
    """Multiply queries and keys by `0.1 ln(factor) + 1`."""

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> "Config":
        if self.alpha >= self.beta:
            raise ValueError(f"alpha {self.alpha} must be less than beta {self.beta}")
        return self

    def build(self, head_width: int, context: int, width: int) -> Position:  # noqa: ARG002
        theta_R = self.plain_frequencies(head_width)
        original = self.trained_on(self.original, context)
        kept_R = self._kept_by_rotations(theta_R, original)
        if self.ramp == "index":
            kept_R = self._kept_by_index(self.rotated(head_width), original)
        blended_R = tuple(
            (1 - kept) * theta / self.factor + kept * theta for theta, kept in zip(theta_R, kept_R, strict=True)
        )
        return Yarn(blended_R, self, 0.1 * math.log(self.factor) + 1 if self.temperature else 1.0)

    def _kept_by_rotations(self, theta_R: Frequencies, original: int) -> Frequencies:
        turns_R = (original * theta / (2 * math.pi) for theta in theta_R)
        return tuple(min(1.0, max(0.0, (t - self.alpha) / (self.beta - self.alpha))) for t in turns_R)

    def _kept_by_index(self, rotated: int, original: int) -> Frequencies:
        low, high = (self._pair_that_turns(turns, rotated, original) for turns in (self.beta, self.alpha))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotated - 1)
        width = high - low if high != low else 0.001
        return tuple(1 - min(1.0, max(0.0, (pair - low) / width)) for pair in range(rotated // 2))

    def _pair_that_turns(self, turns: float, rotated: int, original: int) -> float:
        return rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(self.base))


class Yarn(Rotary):
    """`rotate(x_BHTK, positions_BT, length) -> x_BHTK`."""
