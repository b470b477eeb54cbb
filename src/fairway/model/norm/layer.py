"""Layer normalisation.

`y = gain .* (x - mean(x)) / sqrt(var(x) + eps) + bias` over the last dimension with the biased variance, in float32 at
least. Equals RMSNorm of the centred input, plus bias. Ba et al. 2016. Shape key: D width.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.parts import Norm, NormConfig, Role, compute_dtype
from fairway.ops.layer_norm.native import layer_norm

SOURCE = Source("Ba et al.", 2016, "arXiv:1607.06450")


class Config(NormConfig):
    """Settings of LayerNorm."""

    gain: bool = True
    """Learn one factor per feature."""
    bias: bool = True
    """Learn one summand per feature."""
    eps: float = Field(default=1e-5, gt=0)

    def build(self, width: int, site: str = "block") -> Norm:  # noqa: ARG002
        return LayerNorm(width, self)


class LayerNorm(Norm):
    """`forward(x_...D) -> y_...D`."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.width = width
        self.eps = config.eps
        self.gain_D = nn.Parameter(torch.empty(width)) if config.gain else None
        self.bias_D = nn.Parameter(torch.empty(width)) if config.bias else None

    def roles(self) -> dict[str, Role]:
        return {name: Role.VECTOR for name, value in self.named_parameters() if value is not None}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        if self.gain_D is not None:
            self.gain_D.fill_(1.0)
        if self.bias_D is not None:
            self.bias_D.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.gain_D, self.bias_D, self.eps, compute_dtype(x))
