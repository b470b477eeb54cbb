"""Adam in the eigenbasis of Shampoo's two-sided covariance, for hidden matrices.

Everything else gets plain Adam.

`L = b L + (1-b) g g^T`, `R = b R + (1-b) g^T g`, with bases `Q_L`, `Q_R` of their eigenvectors. In those
bases, g' = Q_L^T g Q_R: `m = b1 m + (1-b1) g`, `v = b2 v + (1-b2) g'^2`, `w = (1 - lr*wd) w - lr Q_L (m' /
(sqrt(v) + eps)) Q_R^T`, both moments corrected for their start. The first gradient only starts the bases: in
its own it is diagonal, and the rest of it rounding noise. Every `refresh` steps the bases take one step of
orthogonal iteration, `Q = qr(L Q)`. A side longer than `longest_side` keeps the identity as its basis. Shape
key: N matrices of a stack, R rows, C columns.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.parts import Role
from fairway.optim.adam import AdamRule
from fairway.optim.groups import make_groups, members_of
from fairway.optim.parts import Group, Optimizer, OptimizerConfig, RateScale, Rule

SOURCE = Source("Vyas et al.", 2024, "arXiv:2409.11321")


class Config(OptimizerConfig):
    """Settings of SOAP."""

    beta1: float = Field(default=0.95, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    covariance_beta: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    refresh: int = Field(default=10, ge=1)
    """Steps between updates of the bases."""
    longest_side: int = Field(default=2048, ge=1)
    """Sides above this are not rotated."""

    def build(self, model: nn.Module, scales: Mapping[str, RateScale] | None = None) -> Optimizer:
        rules: list[tuple[Group, Rule]] = []
        for group in make_groups(model, self, scales):
            members = members_of(model, group)
            if group.role is Role.MATRIX:
                rules.append((group, SoapRule(members, self)))
            else:
                rules.append((group, AdamRule(members, (self.beta1, self.beta2), self.eps)))
        return Optimizer(model, rules)


class SoapRule(Rule):
    """SOAP over matrices and stacks of matrices; state in float32 at least."""

    elementwise = ("mean",)

    def __init__(self, parameters: Mapping[str, Tensor], config: Config) -> None:
        super().__init__()
        self.config = config
        for name, parameter in parameters.items():
            *stack, rows, columns = parameter.shape
            wide = torch.promote_types(parameter.dtype, torch.float32)
            like = torch.zeros_like(parameter, dtype=wide, requires_grad=False)
            state = {"mean": like, "square": like.clone(), "steps": torch.zeros((), dtype=torch.int64)}
            for side, length in (("left", rows), ("right", columns)):
                if length <= config.longest_side:
                    state[side] = like.new_zeros(*stack, length, length)
                    state[f"{side}_basis"] = torch.eye(length, dtype=wide, device=like.device).repeat(*stack, 1, 1)
            self.state[name] = state

    def update(
        self,
        names: Sequence[str],
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        group: Group,
        lr: float,
        progress: float,  # noqa: ARG002
    ) -> None:
        for name, weight, gradient in zip(names, weights, gradients, strict=True):
            state = self.state[name]
            weight.mul_(1.0 - lr * group.weight_decay)
            done = int(state["steps"])
            if done:
                weight.sub_(self._direction(state, gradient, done), alpha=lr)
            self._observe(state, gradient)
            if done == 0:
                _begin(state)
            elif done % self.config.refresh == 0:
                _refresh(state)
            state["steps"] += 1

    def _observe(self, state: dict[str, Tensor], gradient: Tensor) -> None:
        share = 1.0 - self.config.covariance_beta
        for side, factor in (("left", gradient), ("right", gradient.mT)):
            if side in state:
                state[side].lerp_(factor @ factor.mT, share)

    def _direction(self, state: dict[str, Tensor], gradient: Tensor, steps: int) -> Tensor:
        config = self.config
        mean = state["mean"].lerp_(gradient, 1.0 - config.beta1)
        turned = _turn(state, gradient)
        square = state["square"].lerp_(turned.square(), 1.0 - config.beta2)
        size = (square / (1.0 - config.beta2**steps)).sqrt_().add_(config.eps)
        return _turn_back(state, _turn(state, mean / (1.0 - config.beta1**steps)) / size)


def _begin(state: dict[str, Tensor]) -> None:
    for side in ("left", "right"):
        if side in state:
            state[f"{side}_basis"].copy_(torch.linalg.eigh(state[side]).eigenvectors)


def _refresh(state: dict[str, Tensor]) -> None:
    for side in ("left", "right"):
        if side in state:
            state[f"{side}_basis"].copy_(torch.linalg.qr(state[side] @ state[f"{side}_basis"]).Q)


def _turn(state: dict[str, Tensor], matrix: Tensor) -> Tensor:
    if "left_basis" in state:
        matrix = state["left_basis"].mT @ matrix
    return matrix @ state["right_basis"] if "right_basis" in state else matrix


def _turn_back(state: dict[str, Tensor], matrix: Tensor) -> Tensor:
    if "left_basis" in state:
        matrix = state["left_basis"] @ matrix
    return matrix @ state["right_basis"].mT if "right_basis" in state else matrix
