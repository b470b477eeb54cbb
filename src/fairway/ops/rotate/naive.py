"""Heads turned by their position: the definition.

Pairs (i, i + R / 2) of each head rotate by the angle of their token; features from R on stay. Su et al. 2021
(arXiv:2104.09864). Shape key: B batch, T time, H heads, K head width, R turned width.
"""

import torch
from torch import Tensor


def rotate(x_BTHK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """`cos_TR` and `sin_TR` hold the first R / 2 angles of each of T positions."""
    half = cos_TR.shape[-1]
    cos, sin = cos_TR[:, None].to(x_BTHK.dtype), sin_TR[:, None].to(x_BTHK.dtype)
    first, second, rest = x_BTHK.tensor_split((half, 2 * half), dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos, rest), dim=-1)
