"""Dynamic error function in the place of a norm.

`y = gain .* erf(alpha x + shift) + bias` with one scalar alpha and one scalar shift, in float32 at least: half
precision loses erf. The embedded input must be scaled up. Chen et al. 2025. Shape key: D width.
"""

from torch import Tensor

from fairway.core.config import Source
from fairway.model.parts import Norm
from fairway.model.squash import Squash, SquashConfig
from fairway.ops.squash.native import squash

SOURCE = Source("Chen et al.", 2025, "arXiv:2512.10938")


class Config(SquashConfig):
    """Settings of Derf."""

    shift: float | None = 0.0
    """Initial shift inside the function; none to have no shift."""

    def build(self, width: int, site: str = "block") -> Norm:
        return DynamicErf(width, self, site, self.shift)


class DynamicErf(Squash):
    """`forward(x_...D) -> y_...D`."""

    def forward(self, x: Tensor) -> Tensor:
        return squash(x, self.alpha, self.shift, self.gain_D, self.bias_D, "erf")
