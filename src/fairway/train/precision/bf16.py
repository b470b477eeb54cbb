"""bfloat16 matrix products over float32 master weights.

Autocast: products run in bfloat16 (8 bits of mantissa, the range of float32, so no loss scaling), while weights, norms,
softmax and loss stay in float32. Kalamkar et al. 2019.
"""

from contextlib import AbstractContextManager

import torch
from pydantic import Field
from torch import nn

from fairway.core.config import Source
from fairway.core.device import fast_bfloat16
from fairway.core.log import say_once
from fairway.train.numerics import Precision, PrecisionConfig

SOURCE = Source("Kalamkar et al.", 2019, "arXiv:1905.12322")


class Config(PrecisionConfig):
    """Settings of bfloat16 training."""

    only_where_fast: bool = Field(default=True)
    """Compute in float32 on machines without bfloat16 instructions, where it would only be slower."""

    def build(self, model: nn.Module, device: torch.device) -> Precision:  # noqa: ARG002
        enabled = fast_bfloat16(device.type) or not self.only_where_fast
        if not enabled:
            say_once(f"This {device.type} has no bfloat16 instructions; training computes in float32.")
        return Bf16(device.type, enabled)


class Bf16(Precision):
    """Autocast to bfloat16."""

    def __init__(self, device_type: str, enabled: bool) -> None:
        self.device_type = device_type
        self.enabled = enabled

    def forward(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.enabled)
