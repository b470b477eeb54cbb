"""The squared ReLU: the definition.

`y = max(x, 0)^2`. So et al. 2021 (arXiv:2109.08668).
"""

from torch import Tensor


def relu2(x: Tensor) -> Tensor:
    """The square of the positive part, elementwise."""
    return x.clamp_min(0).square()
