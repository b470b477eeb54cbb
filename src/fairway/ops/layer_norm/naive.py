"""Layer normalisation: the definition.

`y = gain .* (x - mean(x)) / sqrt(var(x) + eps) + bias` over the last dimension with the biased variance. Ba et al. 2016
(arXiv:1607.06450). Shape key: D width.
"""

import torch
from torch import Tensor


def layer_norm(x: Tensor, gain_D: Tensor | None, bias_D: Tensor | None, eps: float) -> Tensor:
    """Rows of the last dimension brought to zero mean and unit variance, then scaled and shifted by feature."""
    centred = x - x.mean(-1, keepdim=True)
    y = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = y if gain_D is None else y * gain_D
    return y if bias_D is None else y + bias_D
