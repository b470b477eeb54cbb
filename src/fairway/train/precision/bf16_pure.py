"""bfloat16 weights without float32 masters; the rounding of each update decides whether small ones survive.

Matrices, embeddings and heads are stored in bfloat16; gains, biases, scalars, time constants and routers stay
in float32. Updates are computed in float32 and stored by stochastic rounding, by Kahan summation (a second
bfloat16 tensor keeps what was lost), or to the nearest value, which loses every update below 2^-9 of its
weight. Zamirai et al. 2020.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

from fairway.core.config import Source
from fairway.model.parts import Role, parameter_roles
from fairway.optim.parts import Optimizer
from fairway.optim.rounding import Kahan, Nearest, Stochastic
from fairway.train.numerics import Precision, PrecisionConfig

SOURCE = Source("Zamirai et al.", 2020, "arXiv:2010.06192")

HALVED = frozenset({Role.MATRIX, Role.EMBEDDING, Role.HEAD})
"""Roles stored in bfloat16."""


class Config(PrecisionConfig):
    """Settings of training without master weights."""

    rounding: Literal["stochastic", "kahan", "nearest"] = "stochastic"
    seed: int = 0
    """Of stochastic rounding."""

    def build(self, model: nn.Module, device: torch.device) -> Precision:
        roles = parameter_roles(model)
        for name, parameter in model.named_parameters():
            if roles[name] in HALVED:
                parameter.data = parameter.data.to(torch.bfloat16)
        return PureBf16(device.type, self)


class PureBf16(Precision):
    """bfloat16 storage and products."""

    def __init__(self, device_type: str, config: Config) -> None:
        self.device_type = device_type
        self.config = config
        self.attached = False

    def attach(self, optimizer: Optimizer) -> None:
        self.attached = True
        match self.config.rounding:
            case "stochastic":
                optimizer.rounding = Stochastic(self.config.seed)
            case "kahan":
                named = optimizer.named_parameters()
                optimizer.rounding = Kahan({name: parameter.data for name, parameter in named.items()})
            case "nearest":
                optimizer.rounding = Nearest()

    def forward(self) -> AbstractContextManager[object]:
        assert self.attached, "without an attached optimizer every small update would be lost"
        return torch.autocast(self.device_type, torch.bfloat16)
