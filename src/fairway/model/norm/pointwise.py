"""Any squashing point function in the place of a norm.

`y = gain .* f(alpha x + shift) + bias` for the candidates f of the four-property study, in float32 at least.
`fairway.model.squash.properties` tests a candidate. Chen et al. 2025. Shape key: D width.
"""

import torch
from torch import Tensor

from fairway.core.config import Source
from fairway.model.parts import Norm, widened
from fairway.model.squash import FUNCTIONS, Function, Squash, SquashConfig

SOURCE = Source("Chen et al.", 2025, "arXiv:2512.10938")


class Config(SquashConfig):
    """Settings of a squashing function."""

    function: Function = "algebraic"
    shift: float | None = 0.0
    """Initial shift inside the function; none to have no shift."""

    def build(self, width: int, site: str = "block") -> Norm:
        return Pointwise(width, self, site)


class Pointwise(Squash):
    """`forward(x_...D) -> y_...D`."""

    def __init__(self, width: int, config: Config, site: str) -> None:
        super().__init__(width, config, site, config.shift)
        self.function = FUNCTIONS[config.function]

    def forward(self, x: Tensor) -> Tensor:
        wide = widened(x)
        u = wide * self.alpha.to(wide.dtype)
        y = self.function(u if self.shift is None else u + self.shift.to(wide.dtype))
        if self.gain_D is not None and self.bias_D is not None:
            y = torch.addcmul(self.bias_D.to(wide.dtype), y, self.gain_D.to(wide.dtype))
        elif self.gain_D is not None:
            y = y * self.gain_D.to(wide.dtype)
        elif self.bias_D is not None:
            y = y + self.bias_D.to(wide.dtype)
        return y.to(x.dtype)
