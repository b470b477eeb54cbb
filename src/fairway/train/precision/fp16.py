"""float16 matrix products over float32 master weights, with a loss scale that keeps gradients in range.

The loss is multiplied by S before the backward pass and the gradients divided by S after it. Non-finite gradients skip
the step and multiply S by `backoff`; `patience` finite steps in a row multiply it by `growth`. float16 ends at 65,504
and has nothing below 6e-8, where small gradients would vanish. Micikevicius et al. 2018.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.train.numerics import Precision, PrecisionConfig

SOURCE = Source("Micikevicius et al.", 2018, "arXiv:1710.03740")


class Config(PrecisionConfig):
    """Settings of float16 training."""

    scale: float = Field(default=65_536.0, gt=0)
    """Loss scale at the start."""
    growth: float = Field(default=2.0, ge=1)
    backoff: float = Field(default=0.5, gt=0, le=1)
    patience: int = Field(default=2000, ge=1)
    """Finite steps in a row before the scale grows."""

    def build(self, model: nn.Module, device: torch.device) -> Precision:  # noqa: ARG002
        return Fp16(device.type, self)


class Fp16(Precision):
    """Autocast to float16 with dynamic loss scaling."""

    def __init__(self, device_type: str, config: Config) -> None:
        self.device_type = device_type
        self.config = config
        self._scale = torch.tensor(config.scale, dtype=torch.float32)
        self._finite_steps = torch.zeros((), dtype=torch.int64)

    @property
    def loss_scale(self) -> float:
        """The factor on the loss now."""
        return float(self._scale)

    def forward(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device_type, torch.float16)

    def scale(self, loss: Tensor) -> Tensor:
        return loss * self.loss_scale

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1.0 / self.loss_scale)

    def update(self, finite: bool) -> None:
        if not finite:
            self._scale *= self.config.backoff
            self._finite_steps.zero_()
            return
        self._finite_steps += 1
        if self._finite_steps == self.config.patience:
            grown = self._scale * self.config.growth
            self._scale.copy_(torch.where(grown.isfinite(), grown, self._scale))
            self._finite_steps.zero_()

    def state(self) -> dict[str, Tensor]:
        return {"scale": self._scale, "finite_steps": self._finite_steps}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._scale.copy_(state["scale"])
        self._finite_steps.copy_(state["finite_steps"])
