"""Dynamic tanh in the place of a norm.

`y = gain .* tanh(alpha x) + bias` with one scalar alpha, in float32 at least. The published LLaMA form has no bias and
alpha 0.8 before attention and 0.2 elsewhere at 7B; smaller models want more. The embedded input must be scaled up.
Zhu et al. 2025. Shape key: D width.
"""

from torch import Tensor

from fairway.core.config import Source
from fairway.model.parts import Norm
from fairway.model.squash import Squash, SquashConfig
from fairway.ops.squash.native import squash

SOURCE = Source("Zhu et al.", 2025, "arXiv:2503.10622")


class Config(SquashConfig):
    """Settings of DyT."""

    def build(self, width: int, site: str = "block") -> Norm:
        return DynamicTanh(width, self, site, None)


class DynamicTanh(Squash):
    """`forward(x_...D) -> y_...D`."""

    def forward(self, x: Tensor) -> Tensor:
        return squash(x, self.alpha, self.shift, self.gain_D, self.bias_D, "tanh")
