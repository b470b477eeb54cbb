"""A linear map without bias whose weight knows its role and its initial scale.

`y = x W^T`, W of shape (outputs, inputs). Initial weights are uniform or normal with variance `gain^2 / inputs`, zero
where `gain` is 0. Shape key: O outputs, I inputs.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fairway.model.parts import Part, Role


class Linear(Part):
    """`forward(x_...I) -> y_...O`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        role: Role = Role.MATRIX,
        gain: float = 1.0,
        pieces: tuple[int, ...] = (),
    ) -> None:
        """`pieces`: rows of each matrix where several are fused along the outputs."""
        super().__init__()
        self.fused = pieces
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.role = role
        self.gain = gain

    def roles(self) -> dict[str, Role]:
        return {"weight": self.role}

    def pieces(self) -> dict[str, tuple[int, ...]]:
        return {"weight": self.fused} if self.fused else {}

    def init_weights(self, generator: torch.Generator) -> None:
        deviation = self.gain / math.sqrt(self.weight.shape[1])
        self.weight.normal_(0.0, deviation, generator=generator) if deviation else self.weight.zero_()

    def flops(self, context: int) -> float:  # noqa: ARG002
        return 2.0 * self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)
