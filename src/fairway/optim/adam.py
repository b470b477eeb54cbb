"""Adam with decoupled weight decay as an update rule, on torch's fused multi-tensor kernel.

`m = b1 m + (1-b1) g`, `v = b2 v + (1-b2) g^2`, `w = (1 - lr*wd) w - lr * (m / (1-b1^t)) / (sqrt(v / (1-b2^t))
+ eps)`. Loshchilov & Hutter 2019 (arXiv:1711.05101).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fairway.optim.parts import Group, Rule


class AdamRule(Rule):
    """Adam over the given parameters; moments in float32 at least."""

    elementwise = ("mean", "square")

    def __init__(self, parameters: Mapping[str, Tensor], betas: tuple[float, float], eps: float) -> None:
        super().__init__()
        self.betas = betas
        self.eps = eps
        for name, parameter in parameters.items():
            wide = torch.promote_types(parameter.dtype, torch.float32)
            self.state[name] = {
                "mean": torch.zeros_like(parameter, dtype=wide, requires_grad=False),
                "square": torch.zeros_like(parameter, dtype=wide, requires_grad=False),
                "steps": torch.zeros((), dtype=torch.float32, device=parameter.device),
            }

    def update(
        self,
        names: Sequence[str],
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        group: Group,
        lr: float,
        progress: float,  # noqa: ARG002
    ) -> None:
        steps = [self.state[name]["steps"] for name in names]
        torch._foreach_add_(steps, 1.0)
        torch._fused_adamw_(
            list(weights),
            list(gradients),
            [self.state[name]["mean"] for name in names],
            [self.state[name]["square"] for name in names],
            [],
            steps,
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=group.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )
