"""A point function in the place of a norm: the definition.

`y = gain .* f(alpha x + shift) + bias` over the last dimension, f the tanh (Zhu et al. 2025, arXiv:2503.10622) or erf
(Chen et al. 2025, arXiv:2512.10938). Shape key: D width.
"""

from typing import Literal

import torch
from torch import Tensor

Point = Literal["tanh", "erf"]


def squash(
    x: Tensor, alpha: Tensor, shift: Tensor | None, gain_D: Tensor | None, bias_D: Tensor | None, point: Point
) -> Tensor:
    """Each number squashed by itself; `alpha` and `shift` are scalars."""
    u = x * alpha
    y = (torch.tanh if point == "tanh" else torch.erf)(u if shift is None else u + shift)
    y = y if gain_D is None else y * gain_D
    return y if bias_D is None else y + bias_D
