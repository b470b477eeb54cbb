"""The contracts of the compression slots: how a weight becomes integers, and which weights are removed.

Shape key: R rows (outputs, or all leading dimensions together), C columns (inputs).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fairway.artifact.parts import Packed
from fairway.core.config import Technique
from fairway.core.log import Listener, silent
from fairway.model.lm import LanguageModel
from fairway.model.parts import Role
from fairway.train.parts import Hook

QUANTIZED = frozenset({Role.MATRIX, Role.EMBEDDING, Role.HEAD, Role.ROUTER})
"""Roles whose parameters are quantised and may be pruned; all others are stored as floating-point numbers."""

Sensitivity = Literal["none", "fisher", "hutchinson", "kronecker"]
"""Curvature by which steps are chosen for each tensor."""


@dataclass(frozen=True)
class Statistics:
    """What a linear map saw during calibration, summed over all tokens and all uses of its weight."""

    tokens: int
    gram_CC: Tensor
    """Sum over tokens of x x^T, float64 or float32."""
    felt_R: Tensor | None = None
    """How much the loss feels each output: mean over tokens of the squared slope of the loss, float64."""

    @property
    def squares_C(self) -> Tensor:
        """Sum over tokens of x^2."""
        return self.gram_CC.diagonal()

    @property
    def hessian_CC(self) -> Tensor:
        """`2 X X^T / n`: the Hessian of the mean squared output error for each row of the weight."""
        return self.gram_CC * (2.0 / max(1, self.tokens))


@dataclass(frozen=True)
class Piece:
    """One parameter on its way into the artifact."""

    name: str
    role: Role
    shape: tuple[int, ...]
    weight_RC: Tensor
    """float32."""
    statistics: Statistics | None = None
    kept_RC: Tensor | None = None
    """False where a pruner removed the weight; those stay exactly zero."""


class Quantizer(ABC):
    """Weights to integers. `strength` is the logarithm to base 2 of the step relative to the weights'
    deviation: one more unit costs about one bit less per weight.
    """

    finest: ClassVar[float] = -8.0
    coarsest: ClassVar[float] = 2.0
    bound: ClassVar[str] = "steps finer than compress.finest are not worth storing"
    """Why a file at the finest strength cannot be larger."""
    calibrated: ClassVar[bool] = False
    """Whether it wants `Piece.statistics` where there are any."""
    felt: ClassVar[bool] = False
    """Whether it wants `Statistics.felt_R`, and statistics of tables too."""

    @abstractmethod
    def quantize(self, piece: Piece, strength: float) -> Packed:
        """The piece as integers, of the piece's shape; removed weights unpack to exactly zero."""


class QuantizerConfig(Technique):
    """Settings of a quantiser."""

    def build(self) -> Quantizer:
        """The quantiser."""
        raise NotImplementedError

    def hooks(self) -> list[Hook]:
        """What acts while the model trains; nothing unless the technique is one of training."""
        return []


@dataclass(frozen=True)
class Pruned:
    """What a pruner leaves."""

    model: LanguageModel
    """The model it was given, changed in place, or a smaller one built in its stead."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """By parameter name, which weights stay (True), for every parameter it pruned without rebuilding."""


class Pruner(ABC):
    """Removes weights of a trained model."""

    @abstractmethod
    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:
        """The pruned model; may change the given one."""


class PrunerConfig(Technique):
    """Settings of a pruner."""

    def build(self) -> Pruner:
        """What prunes the trained model before it is quantised."""
        raise NotImplementedError

    def hooks(self, seed: int) -> list[Hook]:  # noqa: ARG002
        """What acts while the model trains; nothing unless the technique is one of training."""
        return []


def removed(weight_RC: Tensor, kept_RC: Tensor | None) -> Tensor:
    """The weight with removed entries zero."""
    return weight_RC if kept_RC is None else torch.where(kept_RC, weight_RC, torch.zeros((), dtype=weight_RC.dtype))


def deviations(weight_RC: Tensor) -> Tensor:
    """Root mean square of each row's non-zero entries; rows of zeros get that of the whole weight, or 1."""
    count_R = (weight_RC != 0).sum(dim=1)
    square_R = weight_RC.double().square().sum(dim=1)
    whole = square_R.sum() / count_R.sum().clamp_min(1)
    mean_R = torch.where(count_R > 0, square_R / count_R.clamp_min(1), whole)
    return torch.where(mean_R > 0, mean_R, torch.ones_like(mean_R)).sqrt()
