"""Linear warm-up, a flat top, linear decay to a floor.

`start + (1 - start) p / warmup` rising, 1, then `floor + (1 - floor) (1 - p) / cooldown` at the end, p the
progress. Hu et al. 2024.
"""

from pydantic import Field, model_validator

from fairway.core.config import Source
from fairway.optim.parts import ScheduleConfig

SOURCE = Source("Hu et al.", 2024, "arXiv:2404.06395")


class Config(ScheduleConfig):
    """Settings of the trapezoid."""

    warmup: float = Field(default=0.02, ge=0, le=1)
    """Share of the progress that rises."""
    start: float = Field(default=0.05, ge=0, le=1)
    """Factor at the very beginning; above zero, or the first step is lost."""
    cooldown: float = Field(default=0.5, ge=0, le=1)
    """Share of the progress that falls."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Factor at the end."""

    @model_validator(mode="after")
    def _shares_fit(self) -> "Config":
        if self.warmup + self.cooldown > 1:
            raise ValueError(f"warmup {self.warmup} and cooldown {self.cooldown} are more than the whole")
        return self

    def factor(self, progress: float) -> float:
        progress = min(1.0, max(0.0, progress))
        if progress < self.warmup:
            return self.start + (1.0 - self.start) * progress / self.warmup
        left = 1.0 - progress
        if left >= self.cooldown:
            return 1.0
        return self.floor + (1.0 - self.floor) * left / self.cooldown
