"""A branch added to the residual stream, and the root-mean-square norm of the sum: the definition.

`s = x + b`, `y = gain .* s / sqrt(mean(s^2) + eps)` over the last dimension; both are results. Zhang & Sennrich 2019
(arXiv:1910.07467). Shape key: D width.
"""

from torch import Tensor

from fairway.ops.rms_norm.naive import rms_norm


def add_rms_norm(x: Tensor, branch: Tensor, gain_D: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The sum, and its norm."""
    total = x + branch
    return total, rms_norm(total, gain_D, eps)
