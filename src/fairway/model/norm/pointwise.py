"""Any squashing point function in the place of a norm.

`y = gain .* f(alpha x + shift) + bias` for the candidates f of the four-property study, in float32 at least.
`fairway.model.squash.properties` tests a candidate. Chen et al. 2025. Shape key: D width.
"""

from torch import Tensor

from fairway.core.config import Source
from fairway.model.parts import Norm
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

    def squash(self, u: Tensor) -> Tensor:
        return self.function(u)
