"""Batch size and context length as functions of progress: small and short at first, whole at the end.

Each is a staircase of `(progress, factor)`: from a progress on, the recipe's batch or context is multiplied by the
factor. Smith et al. 2018 (arXiv:1711.00489) for the batch; Li et al. 2022 (arXiv:2108.06084) for the length.
"""

from itertools import pairwise

from pydantic import model_validator

from fairway.core.config import Config

Staircase = tuple[tuple[float, float], ...]


class StagesConfig(Config):
    """Settings of both schedules; without any, everything stays as it is."""

    batch: Staircase = ()
    """Such as `[[0, 0.5], [0.3, 1]]`: half the batch until 30 % of the run."""
    context: Staircase = ()
    """Such as `[[0, 0.25], [0.2, 0.5], [0.4, 1]]`; no factor above 1."""

    @model_validator(mode="after")
    def _stairs_rise(self) -> "StagesConfig":
        for name, stairs, highest in (("batch", self.batch, 1024.0), ("context", self.context, 1.0)):
            starts = [start for start, _ in stairs]
            if stairs and (starts[0] != 0 or starts[-1] >= 1 or any(a >= b for a, b in pairwise(starts))):
                raise ValueError(f"{name} begins its stages at {starts}; 0 first, then rising and below 1, would work")
            if any(not 0 < factor <= highest for _, factor in stairs):
                raise ValueError(f"{name} has factors outside (0, {highest:g}]")
        return self

    def shape(self, batch: int, context: int, progress: float) -> tuple[int, int]:
        """Rows and tokens a row at a progress."""
        rows, tokens = (_at(stairs, progress) for stairs in (self.batch, self.context))
        return max(1, round(batch * rows)), max(2, round(context * tokens))

    def shapes(self, batch: int, context: int) -> list[tuple[int, int]]:
        """Every shape of a whole run, in order."""
        starts = sorted({0.0, *(start for start, _ in (*self.batch, *self.context))})
        return list(dict.fromkeys(self.shape(batch, context, start) for start in starts))


def _at(stairs: Staircase, progress: float) -> float:
    return next((factor for start, factor in reversed(stairs) if progress >= start), 1.0)
