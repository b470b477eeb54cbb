"""An average of the weights over the later part of a run.

`ema`: `a <- a + (w - a) / h`, h steps of memory, a share of the run. `tail`: the plain mean of all weights from
`start` on. `swa`: the plain mean of snapshots, one at each `every` of progress. Averaging replaces the last part of
learning-rate decay, so its settings and the schedule's floor belong together. Polyak & Juditsky 1992; Izmailov et al.
2018 (arXiv:1803.05407); the exponential one as the schedule's partner: the public parameter-golf records of 2026.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Config
from fairway.train.parallel import local, place, whole


class AverageConfig(Config):
    """Settings of weight averaging."""

    kind: Literal["ema", "tail", "swa"] = "ema"
    horizon: float = Field(default=0.03, ge=0, lt=1)
    """Of `ema`: steps of memory as a share of all steps; 0 switches averaging off."""
    start: float = Field(default=0.5, ge=0, lt=1)
    """Progress from which on weights are averaged."""
    every: float = Field(default=0.02, gt=0, lt=1)
    """Of `swa`: progress between snapshots."""


class Average:
    """Averages of named parameters in their own dtype."""

    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        self.config = config
        self.parameters = dict(model.named_parameters())
        self.averages: dict[str, Tensor] = {}
        self.count = 0
        """Weights in a plain mean."""

    @torch.no_grad()
    def update(self, progress: float, planned_steps: float) -> None:
        """Takes in the weights after a step."""
        if progress < self.config.start or (self.config.kind == "ema" and not self.config.horizon):
            return
        if self.config.kind == "swa" and progress < self.config.start + self.count * self.config.every:
            return
        self.count += 1
        if not self.averages:
            self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
            return
        steps = self.config.horizon * planned_steps if self.config.kind == "ema" else self.count
        now = [local(parameter.detach()) for parameter in self.parameters.values()]
        torch._foreach_lerp_([local(average) for average in self.averages.values()], now, 1.0 / max(1.0, steps))

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights, or the current ones where averaging has not begun."""
        return self.averages or {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def mask(self, masks: Mapping[str, Tensor]) -> None:
        """Zeroes the averages of weights that are removed."""
        for name, mask in masks.items():
            if name in self.averages:
                self.averages[name].mul_(mask)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return {name: whole(average) for name, average in self.averages.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], count: int) -> None:
        """Goes on from saved averages of `count` weights."""
        self.averages, self.count = {}, count
        if state:
            self.averages = {name: torch.empty_like(parameter).detach() for name, parameter in self.parameters.items()}
            for name, average in self.averages.items():
                place(average, state[name])
