"""Root-mean-square normalisation: the definition.

`y = gain .* x / sqrt(mean(x^2) + eps)` over the last dimension. Zhang & Sennrich 2019 (arXiv:1910.07467). Shape key:
D width.
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain_D: Tensor | None, eps: float) -> Tensor:
    """Rows of the last dimension brought to unit root-mean-square, then scaled by feature."""
    y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if gain_D is None else y * gain_D
