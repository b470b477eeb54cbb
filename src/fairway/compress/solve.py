"""The column loop of GPTQ and SparseGPT: fix one input's weights, let all later inputs make up for the
error.

`H = 2 X X^T / n`, dead inputs set apart, damped by a share of its mean diagonal; U the upper Cholesky
factor of `H^-1`. For each column i, left to right: `q` is the column with removed entries zero, then
rounded; `e = (w_i - q) / U_ii`; later columns take `-e U_i,later`. Frantar et al. 2022 (arXiv:2210.17323),
Frantar & Alistarh 2023 (arXiv:2301.00774). Half the sum of e^2 is the increase `1/2 tr(D H D^T)` of the
layer's loss, D the total change.

Columns wait in three levels: within 16 they are updated one by one, within a block and beyond it by matrix
products. The weight is held transposed, so that a column is contiguous. Shape key: R rows, C columns
(inputs), B columns of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairway.core.errors import TrainingError

Round = Callable[[Tensor, int], Tensor]
"""Rounds one column (R) of the weight; the second argument is the column's place."""
Choose = Callable[[Tensor, Tensor], Tensor]
"""Which of the weights (B, R) to keep, given them and the diagonal of U for those columns (B)."""

_INNER = 16


@dataclass(frozen=True)
class Selection:
    """How a mask is chosen during the loop: anew every `every` columns, on weights updated so far."""

    every: int
    choose: Choose


@dataclass(frozen=True)
class Solution:
    """What the loop made of a weight."""

    weight_RC: Tensor
    kept_RC: Tensor
    loss: float
    """`1/2 sum e^2`: predicted increase of half the squared output error, with the damped Hessian."""


def unstructured(sparsity: float, block: int) -> Selection:
    """Removes exactly the given share of every block of columns, all rows jointly, least `w^2 / U_ii^2`
    first.
    """

    def choose(weight_BR: Tensor, diagonal_B: Tensor) -> Tensor:
        score = (weight_BR / diagonal_B[:, None]).square().flatten()
        kept = torch.ones_like(score, dtype=torch.bool)
        kept[torch.topk(score, int(sparsity * score.numel() + 1e-6), largest=False).indices] = False
        return kept.view_as(weight_BR)

    return Selection(block, choose)


def n_of_m(zeros: int, group: int) -> Selection:
    """Removes `zeros` of every `group` neighbouring inputs of each row."""

    def choose(weight_BR: Tensor, diagonal_B: Tensor) -> Tensor:
        score = (weight_BR / diagonal_B[:, None]).square()
        least = torch.topk(score, zeros * len(score) // group, dim=0, largest=False).indices
        return torch.ones_like(score, dtype=torch.bool).scatter_(0, least, False)

    return Selection(group, choose)


def reconstruct(
    weight_RC: Tensor,
    hessian_CC: Tensor,
    *,
    round_column: Round | None = None,
    kept_RC: Tensor | None = None,
    selection: Selection | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> Solution:
    """Prunes and rounds a weight column by column, in the weight's dtype.

    Weights outside `kept_RC`, or not chosen by `selection`, become zero. Raises `TrainingError` where the
    damped Hessian cannot be inverted.
    """
    assert selection is None or selection.every == block or _INNER % selection.every == 0
    work_CR = weight_RC.T.contiguous().clone()
    dead_C = hessian_CC.diagonal() == 0
    work_CR[dead_C] = 0
    upper_CC = inverse_factor(hessian_CC, damping).to(work_CR.dtype)
    kept_CR = torch.ones_like(work_CR, dtype=torch.bool) if kept_RC is None else kept_RC.T.contiguous().clone()
    errors_CR = torch.empty_like(work_CR)
    columns = len(work_CR)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        _solve_block(work_CR, errors_CR, kept_CR, upper_CC, start, stop, round_column, selection)
        work_CR[stop:].addmm_(upper_CC[start:stop, stop:].T, errors_CR[start:stop], alpha=-1)
    loss = 0.5 * float(errors_CR.double().square().sum())
    return Solution(work_CR.T.contiguous(), kept_CR.T.contiguous(), loss)


def inverse_factor(hessian_CC: Tensor, damping: float) -> Tensor:
    """Upper triangular U with `U^T U` the inverse of the damped Hessian, in float64.

    Reversing rows and columns turns a lower Cholesky factor into an upper one, so one factorisation is
    enough.
    """
    hessian_CC = hessian_CC.double().clone()
    diagonal_C = hessian_CC.diagonal()
    diagonal_C[diagonal_C == 0] = 1.0
    diagonal_C += damping * diagonal_C.mean()
    lower_CC, failed = torch.linalg.cholesky_ex(hessian_CC.flip(0, 1))
    if int(failed):
        raise TrainingError(
            f"The Hessian of a layer with {len(hessian_CC)} inputs cannot be inverted; "
            "more calibration text or more damping would help."
        )
    identity_CC = torch.eye(len(hessian_CC), dtype=torch.float64)
    return torch.linalg.solve_triangular(lower_CC, identity_CC, upper=False).flip(0, 1)


def damped(hessian_CC: Tensor, damping: float) -> Tensor:
    """The Hessian that the loop works with."""
    result_CC = hessian_CC.double().clone()
    diagonal_C = result_CC.diagonal()
    diagonal_C[diagonal_C == 0] = 1.0
    diagonal_C += damping * diagonal_C.mean()
    return result_CC


def _solve_block(
    work_CR: Tensor,
    errors_CR: Tensor,
    kept_CR: Tensor,
    upper_CC: Tensor,
    start: int,
    stop: int,
    round_column: Round | None,
    selection: Selection | None,
) -> None:
    for first in range(start, stop, _INNER):
        last = min(first + _INNER, stop)
        for column in range(first, last):
            if selection is not None and (column - start) % selection.every == 0:
                end = min(column + selection.every, stop)
                kept_CR[column:end] &= selection.choose(work_CR[column:end], upper_CC.diagonal()[column:end])
            weight_R = work_CR[column]
            fixed_R = weight_R * kept_CR[column]
            if round_column is not None:
                fixed_R = round_column(fixed_R, column)
            error_R = torch.div(weight_R - fixed_R, upper_CC[column, column], out=errors_CR[column])
            work_CR[column] = fixed_R
            if column + 1 < last:
                work_CR[column + 1 : last].addr_(upper_CC[column, column + 1 : last], error_R, alpha=-1)
        if last < stop:
            work_CR[last:stop].addmm_(upper_CC[first:last, last:stop].T, errors_CR[first:last], alpha=-1)
