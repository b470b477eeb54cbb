"""The sign of an interpolated momentum.

`u = sign(b1 m + (1-b1) g)`, `w = (1 - lr*wd) w - lr u`, `m = b2 m + (1-b2) g`.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.optim.groups import make_groups, members_of
from fairway.optim.parts import Group, Optimizer, OptimizerConfig, RateScale, Rule

SOURCE = Source("Chen et al.", 2023, "arXiv:2302.06675")


class Config(OptimizerConfig):
    """Settings of Lion; learning rates are 3 to 10 times smaller than AdamW's, decay as much larger."""

    lr: float = Field(default=0.0006, ge=0)
    weight_decay: float = Field(default=0.5, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)

    def build(self, model: nn.Module, scales: Mapping[str, RateScale] | None = None) -> Optimizer:
        groups = make_groups(model, self, scales)
        return Optimizer(model, [(group, LionRule(members_of(model, group), self)) for group in groups])


class LionRule(Rule):
    """One momentum, in float32 at least."""

    elementwise = ("momentum",)

    def __init__(self, parameters: Mapping[str, Tensor], config: Config) -> None:
        super().__init__()
        self.config = config
        for name, parameter in parameters.items():
            wide = torch.promote_types(parameter.dtype, torch.float32)
            self.state[name] = {"momentum": torch.zeros_like(parameter, dtype=wide, requires_grad=False)}

    def update(
        self,
        names: Sequence[str],
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        group: Group,
        lr: float,
        progress: float,  # noqa: ARG002
    ) -> None:
        momenta = [self.state[name]["momentum"] for name in names]
        signs = torch._foreach_lerp(momenta, list(gradients), 1.0 - self.config.beta1)
        torch._foreach_sign_(signs)
        if group.weight_decay:
            torch._foreach_mul_(list(weights), 1.0 - lr * group.weight_decay)
        torch._foreach_add_(list(weights), signs, alpha=-lr)
        torch._foreach_lerp_(momenta, list(gradients), 1.0 - self.config.beta2)
