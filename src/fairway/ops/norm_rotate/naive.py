"""Heads normalised, scaled, and turned by their position: the definition.

`y = R_t (f_h gain .* x / sqrt(mean(x^2) + eps))` over each head, f a factor of the head, R_t the rotation of token t by
pairs (i, i + R / 2). QK-norm: Henry et al. 2020 (arXiv:2010.04245); rotation: Su et al. 2021 (arXiv:2104.09864). Shape
key: B batch, T time, H heads, K head width, R turned width.
"""

from torch import Tensor

from fairway.ops.rms_norm.naive import rms_norm
from fairway.ops.rotate.naive import rotate


def norm_rotate(
    x_BTHK: Tensor, gain_K: Tensor | None, factor_H: Tensor | None, cos_TR: Tensor, sin_TR: Tensor, eps: float
) -> Tensor:
    """`cos_TR` and `sin_TR` hold the first R / 2 angles of each of T positions."""
    y_BTHK = rms_norm(x_BTHK, gain_K, eps)
    return rotate(y_BTHK if factor_H is None else y_BTHK * factor_H[:, None], cos_TR, sin_TR)
