"""Skips steps whose loss or gradient norm leaps out of what the last steps had.

A step is skipped where its loss lies more than `sigmas` deviations above the mean of the window, or the logarithm of
its gradient norm does. Only accepted, finite values enter the window, so a spike cannot hide the next one; the window
is part of the checkpoint, so a resumed run decides alike. After `most` skips in a row the new level is believed and
the window begins anew.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from fairway.core.config import Config

LEAST_SPREAD = (0.01, 0.05)
"""Least deviation: of the loss as a share of its mean, and of the logarithm of the norm."""


class GuardConfig(Config):
    """Settings of the spike guard."""

    sigmas: float = Field(default=0.0, ge=0)
    """Deviations above the mean at which a step is skipped; 0 switches the guard off."""
    window: int = Field(default=128, ge=8)
    """Accepted steps that mean and deviation are taken over; nothing is skipped before a quarter of it is full."""
    most: int = Field(default=20, ge=1)
    """Steps in a row that may be skipped."""


class Guard:
    """Remembers the last accepted steps and judges the next."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.seen = torch.zeros((0, 2), dtype=torch.float64)
        self.skipped = 0

    def accepts(self, loss: float, norm: float) -> bool:
        """Whether to take a step of finite loss and gradient norm; remembers it if so."""
        if not self.config.sigmas:
            return True
        values = torch.tensor([loss, math.log(max(norm, 1e-30))], dtype=torch.float64)
        if self._leaps(values):
            self.skipped += 1
            if self.skipped <= self.config.most:
                return False
            self.seen = self.seen[:0]
        self.skipped = 0
        self.seen = torch.cat((self.seen, values[None]))[-self.config.window :]
        return True

    def _leaps(self, values: Tensor) -> bool:
        if 4 * len(self.seen) < self.config.window:
            return False
        mean = self.seen.mean(0)
        least = torch.stack((LEAST_SPREAD[0] * mean[0].abs(), mean.new_tensor(LEAST_SPREAD[1])))
        return bool((values > mean + self.config.sigmas * self.seen.std(0).maximum(least)).any())

    def state(self) -> dict[str, Tensor]:
        """What an exact resume needs."""
        return {"seen": self.seen, "skipped": torch.tensor(self.skipped)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state()`."""
        self.seen, self.skipped = state["seen"], int(state["skipped"])
