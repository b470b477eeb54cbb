"""Products that are known to be symmetric: the definition.

`C = alpha A B^T + beta D`. The product of a matrix with its own transpose is symmetric, and so is that of two symmetric
matrices that commute, as polynomials of one matrix do. Shape key: N matrices, S side, K summed over.
"""

import torch
from torch import Tensor


def product(a_NSK: Tensor, b_NSK: Tensor, d_NSS: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """The upper triangle of `alpha A B^T + beta D`, and its mirror image below."""
    c_NSS = alpha * (a_NSK @ b_NSK.mT)
    upper_NSS = torch.triu(c_NSS if d_NSS is None else c_NSS + beta * d_NSS)
    return upper_NSS + torch.triu(upper_NSS, 1).mT
