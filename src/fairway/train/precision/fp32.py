"""Single precision throughout.

Parameters, activations and gradients in float32 (or whatever the model holds).
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from fairway.core.config import Source
from fairway.train.numerics import Precision, PrecisionConfig

SOURCE = Source("IEEE", 2019, "IEEE 754-2019")


class Config(PrecisionConfig):
    """Settings of float32; there are none."""

    def build(self, model: nn.Module, device: torch.device) -> Precision:  # noqa: ARG002
        return Fp32()


class Fp32(Precision):
    """Changes nothing."""

    def forward(self) -> AbstractContextManager[object]:
        return nullcontext()
