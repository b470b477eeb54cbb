"""Adam with decoupled weight decay, fused.

`m = b1 m + (1-b1) g`, `v = b2 v + (1-b2) g^2`, `w = (1 - lr*wd) w - lr * (m / (1-b1^t)) / (sqrt(v / (1-b2^t))
+ eps)`; vectors, scalars and time constants do not decay.
"""

from collections.abc import Mapping

from pydantic import Field
from torch import nn

from fairway.core.config import Source
from fairway.optim.adam import AdamRule
from fairway.optim.groups import make_groups, members_of
from fairway.optim.parts import Optimizer, OptimizerConfig, RateScale

SOURCE = Source("Loshchilov & Hutter", 2019, "arXiv:1711.05101")


class Config(OptimizerConfig):
    """Settings of AdamW."""

    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)

    def build(self, model: nn.Module, scales: Mapping[str, RateScale] | None = None) -> Optimizer:
        betas = (self.beta1, self.beta2)
        groups = make_groups(model, self, scales)
        return Optimizer(model, [(group, AdamRule(members_of(model, group), betas, self.eps)) for group in groups])
