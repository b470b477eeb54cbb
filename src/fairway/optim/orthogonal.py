"""Batched Newton-Schulz iterations towards the polar factor `U V^T` of each matrix `G = U S V^T`.

`X = G / ||G||_F`, then `X = (a I + b A + c A A) X` with `A = X X^T`, as often as there are coefficients
(Jordan et al. 2024; Amsel et al. 2025, arXiv:2505.16932). The classic coefficients do not converge to
singular values of 1: after five steps they lie in [0.68, 1.14] for inputs above 0.01 of the Frobenius norm.

Polynomials of `A` are symmetric and commute with `A`. So a period of several steps can run on the small
square alone, and touch `X` once to form `A` and once to apply the product: with `P = a I + b A + c A A`,
`Q = P Q` and `A = P A P` for each step, then `X = Q X`.
Squaring the singular values buries small ones under rounding, and `Q` takes the largest one down by differences
of large numbers. In bfloat16 both can leave the range of the next step, which then explodes: five steps in one
period do, and three where one singular vector is nearly all and lies on few features. Two are as exact as one
step at a time; long matrices use them.
Shape key: N matrices, R rows, C columns, S = min(R, C).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fairway.ops.momentum.naive import SMALLEST_NORM
from fairway.ops.newton_schulz import native
from fairway.ops.newton_schulz.naive import Coefficients

CLASSIC: Coefficients = (3.4445, -4.7750, 2.0315)
CUBIC: Coefficients = (1.5, -0.5, 0.0)
"""Newton-Schulz proper: converges to the polar factor, slowly."""

_POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Optimal odd quintics one after another for singular values in [0.001, 1]."""
_SAFETY = 1.01
"""Margin against rounding errors that carry singular values above 1 before the last step."""

LONG = 2.0
"""Ratio of the sides from which periods of several steps cost less."""

CoefficientName = Literal["classic", "polar_express", "cubic"]


def coefficients(name: CoefficientName, steps: int) -> tuple[Coefficients, ...]:
    """The `(a, b, c)` of each of `steps` iterations."""
    if name == "classic":
        return (CLASSIC,) * steps
    if name == "cubic":
        return (CUBIC,) * steps
    tail = (_POLAR_EXPRESS[-1],) * max(0, steps - len(_POLAR_EXPRESS))
    chosen = (*_POLAR_EXPRESS, *tail)[:steps]
    safe = tuple((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in chosen[:-1])
    return (*safe, *chosen[-1:])


def orthogonalise(x_NRC: Tensor, steps: Sequence[Coefficients], periods: Sequence[int] | None = None) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of the given ones; a zero matrix stays zero.

    Computes in the dtype of `x_NRC` and overwrites it. `periods` are the numbers of steps between products
    with the whole matrix; by default they follow from the shape and the coefficients.
    """
    x_NRC.div_(torch.linalg.vector_norm(x_NRC, dim=(-2, -1), keepdim=True).clamp_min(SMALLEST_NORM))
    return iterate(x_NRC, steps, periods)


def iterate(x_NRC: Tensor, steps: Sequence[Coefficients], periods: Sequence[int] | None = None) -> Tensor:
    """The same for matrices whose Frobenius norms are 1 or 0 already; may overwrite them."""
    rows, columns = x_NRC.shape[-2:]
    if periods is None:
        long = max(rows, columns) >= LONG * min(rows, columns)
        periods = long_periods(steps) if long else (1,) * len(steps)
    assert sum(periods) == len(steps)
    if native.served(x_NRC):
        return native.iterate(x_NRC, steps, periods)
    start = 0
    for period in periods:
        x_NRC = _advance(x_NRC, steps[start : start + period])
        start += period
    return x_NRC


def long_periods(steps: Sequence[Coefficients]) -> tuple[int, ...]:
    """Steps in each period for a long matrix."""
    pairs, single = divmod(len(steps), 2)
    return (2,) * pairs + (1,) * single


def _advance(x_NRC: Tensor, steps: Sequence[Coefficients]) -> Tensor:
    lying = x_NRC.shape[-2] <= x_NRC.shape[-1]
    side_NSK = x_NRC if lying else x_NRC.mT
    a_NSS = torch.bmm(side_NSK, side_NSK.mT)
    if len(steps) == 1:
        ((a, b, c),) = steps
        p_NSS = torch.baddbmm(a_NSS, a_NSS, a_NSS.mT, beta=b, alpha=c)
        left, right = (p_NSS, x_NRC) if lying else (x_NRC, p_NSS)
        return torch.baddbmm(x_NRC, left, right, beta=a)
    q_NSS = _combined(a_NSS, steps)
    return torch.bmm(q_NSS, x_NRC) if lying else torch.bmm(x_NRC, q_NSS)


def _combined(a_NSS: Tensor, steps: Sequence[Coefficients]) -> Tensor:
    """The matrix that takes a matrix of Gram matrix `a_NSS` through all steps."""
    q_NSS: Tensor | None = None
    for index, (a, b, c) in enumerate(steps):
        p_NSS = torch.baddbmm(a_NSS, a_NSS, a_NSS.mT, beta=b, alpha=c)
        p_NSS.diagonal(dim1=-2, dim2=-1).add_(a)
        if index < len(steps) - 1:
            a_NSS = torch.bmm(torch.bmm(p_NSS, a_NSS), p_NSS.mT)
        q_NSS = p_NSS if q_NSS is None else torch.bmm(p_NSS, q_NSS.mT)
    assert q_NSS is not None
    return q_NSS
