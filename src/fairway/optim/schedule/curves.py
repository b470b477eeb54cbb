"""Schedules of one curve after a linear warm-up.

With p the progress after the warm-up, scaled to [0, 1], and f the floor: `cosine` f + (1-f) (1 + cos(pi p)) /
2 (Loshchilov & Hutter 2017); `linear` f + (1-f) (1 - p); `constant` 1. `inverse_sqrt` is sqrt(w / max(w,
progress)), w the warm-up (Vaswani et al. 2017).
"""

import math
from typing import Literal

from pydantic import Field, model_validator

from fairway.core.config import Source
from fairway.optim.parts import ScheduleConfig

Curve = Literal["cosine", "linear", "inverse_sqrt", "constant"]
KINDS: tuple[Curve, ...] = ("cosine", "linear", "inverse_sqrt", "constant")
SUMMARIES = {
    "cosine": "Half a cosine from the top to a floor",
    "linear": "A straight line from the top to a floor",
    "inverse_sqrt": "One over the square root of the progress",
    "constant": "The same rate from the warm-up to the end",
}
SOURCES = {
    "cosine": Source("Loshchilov & Hutter", 2017, "arXiv:1608.03983"),
    "linear": Source("Defazio et al.", 2023, "arXiv:2310.07831"),
    "inverse_sqrt": Source("Vaswani et al.", 2017, "arXiv:1706.03762"),
    "constant": Source("Robbins & Monro", 1951, "Annals of Mathematical Statistics 22(3):400-407"),
}


class Config(ScheduleConfig):
    """Settings of a one-curve schedule."""

    warmup: float = Field(default=0.02, ge=0, lt=1)
    """Share of the progress that rises."""
    start: float = Field(default=0.05, ge=0, le=1)
    """Factor at the very beginning; above zero, or the first step is lost."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Factor at the end of `cosine` and `linear`; the least factor of `inverse_sqrt`."""

    @model_validator(mode="after")
    def _has_a_warmup(self) -> "Config":
        if self.kind == "inverse_sqrt" and self.warmup == 0:
            raise ValueError("inverse_sqrt falls from the end of its warm-up; a warmup of 0.01 would work")
        return self

    def factor(self, progress: float) -> float:
        progress = min(1.0, max(0.0, progress))
        if progress < self.warmup:
            return self.start + (1.0 - self.start) * progress / self.warmup
        past = (progress - self.warmup) / (1.0 - self.warmup)
        match self.kind:
            case "cosine":
                return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * past))
            case "linear":
                return self.floor + (1.0 - self.floor) * (1.0 - past)
            case "inverse_sqrt":
                return max(self.floor, math.sqrt(self.warmup / progress))
        return 1.0
