"""Point functions in the place of normalisation, and the four properties that make one fit for it.

`y = gain .* f(alpha x + shift) + bias`: f squashes each number by itself, so nothing is averaged over the width.
alpha and shift are one scalar each. A fit f is zero-centred, bounded, sensitive near zero and monotone (Chen et al.
2025, arXiv:2512.10938, after Zhu et al. 2025, arXiv:2503.10622). Shape key: D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.model.parts import Norm, NormConfig, Role

Where = Literal["mixer", "ffn", "final", "qk"]
Function = Literal[
    "tanh", "erf", "arctan", "algebraic", "softsign", "exponential", "sine", "clip", "clipped_log",
    "clipped_log_square", "clipped_power", "cubic", "root", "log_ratio", "exponential_root",
]  # fmt: skip

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "erf": torch.erf,
    "arctan": lambda u: (2 / math.pi) * torch.atan(u),
    "algebraic": lambda u: u * torch.rsqrt(1 + u.square()),
    "softsign": lambda u: u / (1 + u.abs()),
    "exponential": lambda u: -torch.sign(u) * torch.expm1(-u.abs()),
    "sine": lambda u: torch.sin(u.clamp(-math.pi / 2, math.pi / 2)),
    "clip": lambda u: u.clamp(-1, 1),
    "clipped_log": lambda u: (torch.sign(u) * torch.log1p(u.abs())).clamp(-1, 1),
    "clipped_log_square": lambda u: (torch.sign(u) * torch.log1p(u.square())).clamp(-1, 1),
    "clipped_power": lambda u: (torch.sign(u) * _power(u, 2 / 3)).clamp(-1, 1),
    "cubic": lambda u: _cubic(u.clamp(-1e6, 1e6)),
    "root": lambda u: u / (torch.sqrt(u.square() + 1) + 1),
    "log_ratio": lambda u: _log_ratio(torch.sign(u), torch.log1p(u.abs())),
    "exponential_root": lambda u: -torch.sign(u) * torch.expm1(-_power(u, 0.5)),
}


class SquashConfig(NormConfig):
    """Settings that every squashing function shares."""

    alpha: float = Field(default=0.5, gt=0)
    """Initial factor inside the function where `alpha_at` names none."""
    alpha_at: dict[Where, float] = Field(default_factory=dict)
    """Initial factor by place: mixer, ffn, final, qk. Wider models want smaller ones, larger before mixers."""
    gain: bool = True
    """Learn one factor per feature."""
    bias: bool = True
    """Learn one summand per feature."""

    def alpha_for(self, site: str) -> float:
        """The initial alpha of one place."""
        return next((value for place, value in self.alpha_at.items() if place == site), self.alpha)

    def needs_embedding_scale(self) -> bool:
        return True


class Squash(Norm):
    """`forward(x_...D) -> y_...D` for a point function that a subclass applies."""

    def __init__(self, width: int, config: SquashConfig, site: str, shift: float | None) -> None:
        super().__init__()
        self.alpha_start = config.alpha_for(site)
        self.shift_start = shift
        self.alpha = nn.Parameter(torch.empty(()))
        self.shift = nn.Parameter(torch.empty(())) if shift is not None else None
        self.gain_D = nn.Parameter(torch.empty(width)) if config.gain else None
        self.bias_D = nn.Parameter(torch.empty(width)) if config.bias else None

    def roles(self) -> dict[str, Role]:
        return {
            name: Role.SCALAR if value.ndim == 0 else Role.VECTOR
            for name, value in self.named_parameters(recurse=False)
        }

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        self.alpha.fill_(self.alpha_start)
        if self.shift is not None and self.shift_start is not None:
            self.shift.fill_(self.shift_start)
        if self.gain_D is not None:
            self.gain_D.fill_(1.0)
        if self.bias_D is not None:
            self.bias_D.zero_()


@dataclass(frozen=True)
class Properties:
    """What a numerical look at a point function finds."""

    centre: float
    """`f(0)`."""
    bound: float
    """Largest magnitude reached; infinite where it still grows at the ends of the range."""
    slope: float
    """Mean slope over [-0.1, 0.1]: what a small signal becomes."""
    monotone: bool
    """Never falling."""

    @property
    def zero_centred(self) -> bool:
        """Whether zero stays zero, up to a tenth of the range."""
        return abs(self.centre) <= 0.1 * min(self.bound, 10.0)

    @property
    def bounded(self) -> bool:
        """Whether the function stays within finite bounds."""
        return math.isfinite(self.bound)

    @property
    def centre_sensitive(self) -> bool:
        """Whether small inputs around zero are told apart."""
        return self.slope >= 0.05

    def fit(self) -> bool:
        """Whether all four hold."""
        return self.zero_centred and self.bounded and self.centre_sensitive and self.monotone


def properties(function: Callable[[Tensor], Tensor]) -> Properties:
    """Tests the four properties of any candidate in float64, on a dense grid and on a logarithmic one up to 1e8.

    A function counts as bounded where it grows by less than 1 % from 1e75 to 1e150, which tells even the slow
    `log(1+x) / (1 + log(1+x))` from `log(1+x)`.
    """
    ends = torch.logspace(-8, 8, 4001, dtype=torch.float64)
    near = torch.linspace(-50, 50, 20_001, dtype=torch.float64)
    x = torch.cat((-ends.flip(0), near, ends)).sort().values
    y = function(x)
    if not y.isfinite().all():
        return Properties(float(function(x.new_zeros(1))), math.inf, 0.0, False)
    far, farther = (function(x.new_tensor([-e, e])).abs().max() for e in (1e75, 1e150))
    grows = farther > far * 1.01 + 1e-6
    inner = x.new_tensor([-0.1, 0.1])
    falls = float((y[:-1] - y[1:]).max())
    return Properties(
        centre=float(function(x.new_zeros(1))),
        bound=math.inf if grows else float(y.abs().max()),
        slope=float(function(inner).diff() / 0.2),
        monotone=falls <= 1e-9 * float(y.abs().max()),
    )


def _power(u: Tensor, exponent: float) -> Tensor:
    """`|u|^exponent` with a finite gradient at zero."""
    return u.abs().clamp_min(torch.finfo(u.dtype).tiny ** 0.5).pow(exponent)


def _cubic(u: Tensor) -> Tensor:
    cube = u * u.square()
    return cube / (1 + cube.abs())


def _log_ratio(sign: Tensor, log: Tensor) -> Tensor:
    return sign * log / (1 + log)
