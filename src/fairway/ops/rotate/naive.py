"""Heads turned by their position: the definition.

Pairs (i, i + R / 2) of each head rotate by the angle of their token; features from R on stay. Su et al. 2021
(arXiv:2104.09864). Shape key: B batch, T time, H heads, K head width, R turned width.
"""

import torch
from torch import Tensor


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`cos` and `sin` hold R / 2 angles of each position: (T, R / 2), or (B, T, R / 2) where sequences differ."""
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(-2).to(x_BTHK.dtype), sin.unsqueeze(-2).to(x_BTHK.dtype)
    first, second, rest = x_BTHK.tensor_split((half, 2 * half), dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos, rest), dim=-1)
