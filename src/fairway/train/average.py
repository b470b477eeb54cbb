"""An exponential moving average of the weights, whose horizon is a share of the run.

`a <- a + (w - a) / h`, h steps of memory. Averaging replaces the last part of learning-rate decay, so its horizon and the schedule's
floor belong together. Polyak & Juditsky 1992; as the schedule's partner: the public
parameter-golf records of 2026.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Config


class AverageConfig(Config):
    """Settings of weight averaging."""

    horizon: float = Field(default=0.03, ge=0, lt=1)
    """Steps of memory as a share of all steps; 0 switches averaging off."""
    start: float = Field(default=0.5, ge=0, lt=1)
    """Progress from which on weights are averaged."""


class Average:
    """Averages of named parameters in their own dtype."""

    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        self.config = config
        self.parameters = dict(model.named_parameters())
        self.averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, progress: float, planned_steps: float) -> None:
        """Takes in the weights after a step."""
        if not self.config.horizon or progress < self.config.start:
            return
        if not self.averages:
            self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
            return
        rate = 1.0 / max(1.0, self.config.horizon * planned_steps)
        torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), rate)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights, or the current ones where averaging has not begun."""
        return self.averages or {name: parameter.detach() for name, parameter in self.parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self.averages)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from saved averages."""
        self.averages = {name: state[name] for name in self.parameters} if state else {}
