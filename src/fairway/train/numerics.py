"""The contracts of precision and recomputation: in which number formats a step runs, and what it keeps in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from fairway.core.config import Technique
from fairway.optim.parts import Optimizer
from fairway.train.segmentation import Costs, Prediction


class Precision(ABC):
    """How a training step computes. A step calls `forward`, `scale`, then `unscale`, then `update`."""

    def attach(self, optimizer: Optimizer) -> None:  # noqa: B027
        """Tells the optimizer how to store what it computes; called once, before the first step."""

    @abstractmethod
    def forward(self) -> AbstractContextManager[object]:
        """The surroundings of a forward pass, such as autocast."""

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:  # noqa: B027
        """Brings the gradients back to the scale of the loss; called once, before clipping."""

    def update(self, finite: bool) -> None:  # noqa: B027
        """Learns whether the step's gradients were finite: one decision for all optimizers."""

    def after_step(self) -> None:  # noqa: B027
        """Called after the optimizer changed the parameters."""

    def state(self) -> dict[str, Tensor]:
        """What an exact resume needs."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state()`."""
        assert not state


class PrecisionConfig(Technique):
    """Settings of a precision."""

    def build(self, model: nn.Module, device: torch.device) -> Precision:
        """Prepares the model and returns the precision of its steps."""
        raise NotImplementedError


class RecomputeConfig(Technique):
    """Settings of recomputation."""

    def apply(self, model: nn.Module) -> None:
        """Changes how the model's blocks keep their activations."""
        raise NotImplementedError

    def predict(self, costs: Costs) -> Prediction:
        """Peak bytes and extra work for blocks of these costs, as `recomputation.measure` finds them."""
        raise NotImplementedError
