"""Root-mean-square normalisation.

`y = gain .* x / sqrt(mean(x^2) + eps)` over the last dimension, in float32 at least; the mean may be taken over the
first features only (pRMSNorm). The gain may be stored as its distance from one. Zhang & Sennrich 2019.
Shape key: D width.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.parts import Angles, Norm, NormConfig, Role, compute_dtype, widened
from fairway.ops.add_rms_norm.native import add_rms_norm
from fairway.ops.norm_rotate.native import norm_rotate
from fairway.ops.rms_norm.native import rms_norm

SOURCE = Source("Zhang & Sennrich", 2019, "arXiv:1910.07467")


class Config(NormConfig):
    """Settings of RMSNorm."""

    gain: bool = True
    """Learn one factor per feature."""
    unit_offset: bool = False
    """Store the gain as its distance from one, so that decay pulls it to one."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the features, from the first on, that the mean square is taken over."""
    eps: float = Field(default=1e-6, gt=0)

    def build(self, width: int, site: str = "block") -> Norm:  # noqa: ARG002
        return RmsNorm(width, self)


class RmsNorm(Norm):
    """`forward(x_...D) -> y_...D`."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.width = width
        self.measured = max(1, int(config.fraction * width))
        self.eps = config.eps
        self.unit_offset = config.unit_offset
        self.gain = nn.Parameter(torch.empty(width)) if config.gain else None

    def roles(self) -> dict[str, Role]:
        return {} if self.gain is None else {"gain": Role.VECTOR}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        if self.gain is not None:
            self.gain.fill_(0.0 if self.unit_offset else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        gain_D = self._gain()
        if self.measured == self.width:
            return rms_norm(x, gain_D, self.eps, compute_dtype(x))
        wide = widened(x)
        square = wide[..., : self.measured].square().mean(-1, keepdim=True)
        y = wide * torch.rsqrt(square + self.eps)
        return (y if gain_D is None else y * gain_D.to(y.dtype)).to(x.dtype)

    def of_sum(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        if self.measured < self.width:
            return super().of_sum(x, branch)
        return add_rms_norm(x, branch, self._gain(), self.eps, compute_dtype(x))

    def turned(self, x_BTHK: Tensor, factor_H: Tensor | None, angles_TR: Angles) -> Tensor:
        if self.measured < self.width:
            return super().turned(x_BTHK, factor_H, angles_TR)
        return norm_rotate(x_BTHK, self._gain(), factor_H, *angles_TR, self.eps, compute_dtype(x_BTHK))

    def _gain(self) -> Tensor | None:
        return self.gain + 1.0 if self.gain is not None and self.unit_offset else self.gain
