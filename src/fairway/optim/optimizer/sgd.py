"""Stochastic gradient descent with momentum.

`buf = mu buf + g`, `w = (1 - lr*wd) w - lr u` with `u = g + mu buf` (Nesterov) or `buf`. With `coupled` the
decay is added to the gradient instead, `g + wd w`, and so passes through the momentum, as in
`torch.optim.SGD`.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.parts import Role
from fairway.optim.groups import make_groups, members_of
from fairway.optim.parts import Group, Growth, Optimizer, OptimizerConfig, RateScale, Rule

SOURCE = Source("Sutskever et al.", 2013, "ICML 2013, PMLR 28(3):1139-1147")


class Config(OptimizerConfig):
    """Settings of SGD."""

    lr: float = Field(default=0.1, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    coupled: bool = False
    """Add weight decay to the gradient."""

    def matrix_rate(self, role: Role, growth: Growth) -> float:  # noqa: ARG002
        return growth.out / growth.into

    def vector_rate(self, growth: float) -> float:
        return growth

    def build(self, model: nn.Module, scales: Mapping[str, RateScale] | None = None) -> Optimizer:
        groups = make_groups(model, self, scales)
        return Optimizer(model, [(group, SgdRule(members_of(model, group), self)) for group in groups])


class SgdRule(Rule):
    """Momentum in float32 at least; no state without momentum."""

    def __init__(self, parameters: Mapping[str, Tensor], config: Config) -> None:
        super().__init__()
        self.config = config
        self.elementwise = ("momentum",) if config.momentum else ()
        for name, parameter in parameters.items() if config.momentum else ():
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
        if not self.config.coupled and group.weight_decay:
            torch._foreach_mul_(list(weights), 1.0 - lr * group.weight_decay)
        momentum = self.config.momentum
        torch._fused_sgd_(
            list(weights),
            list(gradients),
            [self.state[name]["momentum"] for name in names] if momentum else [],
            weight_decay=group.weight_decay if self.config.coupled else 0.0,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=self.config.nesterov and momentum > 0,
            maximize=False,
            is_first_step=False,
        )
