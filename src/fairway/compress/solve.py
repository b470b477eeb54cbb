"""The column loop of GPTQ and SparseGPT: fix one input's weights, let all later inputs make up for the
error.

`H = 2 X X^T / n`, dead inputs set apart, damped by a share of its mean diagonal; U the upper Cholesky
factor of `H^-1`. For each column i, left to right: `q` is the column with removed entries zero, then
rounded; `e = (w_i - q) / U_ii`; later columns take `-e U_i,later`. Frantar et al. 2022 (arXiv:2210.17323),
Frantar & Alistarh 2023 (arXiv:2301.00774). Half the sum of e^2 is the increase `1/2 tr(D H D^T)` of the
layer's loss, D the total change.

Columns wait in two levels: within a block they are updated one by one (`ops/columns`), beyond it by one matrix product
for each block. The weight is held transposed, so that a column is contiguous. Shape key: R rows, C columns (inputs),
B columns of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairway.compress.masks import keep_in_rows
from fairway.core.errors import TrainingError
from fairway.ops.columns.native import solve

Round = Callable[[Tensor, int], Tensor]
"""Rounds one column (R) of the weight; the second argument is the column's place."""

_INNER = 16
_SMALL = 128


@dataclass(frozen=True)
class Selection:
    """How a mask is chosen during the loop, on weights updated so far."""

    sparsity: float = 0.0
    """Share of every block to remove, all rows jointly, least `w^2 / U_ii^2` first."""
    pattern: tuple[int, int] | None = None
    """How many to remove of how many neighbouring inputs of each row, in place of a share."""


@dataclass(frozen=True)
class Solution:
    """What the loop made of a weight."""

    weight_RC: Tensor
    kept_RC: Tensor
    loss: float
    """`1/2 sum e^2`: predicted increase of half the squared output error, with the damped Hessian."""


def unstructured(sparsity: float) -> Selection:
    """Removes exactly the given share of every block of columns."""
    return Selection(sparsity)


def n_of_m(zeros: int, group: int) -> Selection:
    """Removes `zeros` of every `group` neighbouring inputs of each row."""
    return Selection(pattern=(zeros, group))


def reconstruct(
    weight_RC: Tensor,
    hessian_CC: Tensor,
    *,
    step_R: Tensor | None = None,
    round_column: Round | None = None,
    kept_RC: Tensor | None = None,
    selection: Selection | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> Solution:
    """Prunes and rounds a weight column by column, in the weight's dtype: to multiples of each row's step, or as
    `round_column` says.

    Weights outside `kept_RC`, or not chosen by `selection`, become zero. Raises `TrainingError` where the
    damped Hessian cannot be inverted.
    """
    assert step_R is None or round_column is None
    pattern = None if selection is None else selection.pattern
    assert pattern is None or block % pattern[1] == 0
    work_CR = weight_RC.T.contiguous().clone()
    dead_C = hessian_CC.diagonal() == 0
    work_CR[dead_C] = 0
    upper_CC = inverse_factor(hessian_CC, damping, work_CR.dtype).to(work_CR.dtype)
    kept_CR = torch.ones_like(work_CR, dtype=torch.bool) if kept_RC is None else kept_RC.T.contiguous().clone()
    loss = 0.0
    for start in range(0, len(work_CR), block):
        here, behind = slice(start, start + block), slice(start + block, None)
        if selection is not None and pattern is None:
            kept_CR[here] &= _keep_share(work_CR[here], upper_CC.diagonal()[here], selection.sparsity)
        if round_column is None:
            errors_BR = solve(work_CR[here], kept_CR[here], upper_CC[here, here], step_R, pattern)
        else:
            assert pattern is None
            errors_BR = _by_columns(work_CR[here], kept_CR[here], upper_CC[here, here], round_column, start)
        work_CR[behind].addmm_(upper_CC[here, behind].T, errors_BR, alpha=-1)
        loss += 0.5 * float(errors_BR.double().square().sum())
    return Solution(work_CR.T.contiguous(), kept_CR.T.contiguous(), loss)


def inverse_factor(hessian_CC: Tensor, damping: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Upper triangular U with `U^T U` the inverse of the damped Hessian; in float64 where `dtype` is not enough.

    Reversing rows and columns turns the inverse of a lower Cholesky factor into U.
    """
    damped_CC = damped(hessian_CC, damping, dtype).flip(0, 1)
    inverse_CC = torch.zeros_like(damped_CC)
    if not _invert_factor(damped_CC, inverse_CC):
        damped_CC = damped(hessian_CC, damping).flip(0, 1)
        inverse_CC = torch.zeros_like(damped_CC)
        if not _invert_factor(damped_CC, inverse_CC):
            raise TrainingError(
                f"The Hessian of a layer with {len(hessian_CC)} inputs cannot be inverted; "
                "more calibration text or more damping would help."
            )
    return inverse_CC.flip(0, 1)


def _invert_factor(matrix_CC: Tensor, out_CC: Tensor) -> bool:
    """Writes the inverse of the lower Cholesky factor below the diagonal of zeros; False where there is no factor.

    By halves: with L1 the factor of the first block and `B = M21 L1^-T`, the second factor is that of `M22 - B B^T`,
    and the block below is `-L2^-1 B L1^-1`. So nearly all the work is matrix products.
    """
    size = len(matrix_CC)
    if size <= _SMALL:
        lower_CC, failed = torch.linalg.cholesky_ex(matrix_CC)
        if int(failed):
            return False
        identity_CC = torch.eye(size, dtype=matrix_CC.dtype)
        out_CC.copy_(torch.linalg.solve_triangular(lower_CC, identity_CC, upper=False))
        return True
    half = size // 2
    first_CC, last_CC = out_CC[:half, :half], out_CC[half:, half:]
    if not _invert_factor(matrix_CC[:half, :half], first_CC):
        return False
    below_CC = matrix_CC[half:, :half] @ first_CC.T
    if not _invert_factor(torch.addmm(matrix_CC[half:, half:], below_CC, below_CC.T, alpha=-1), last_CC):
        return False
    torch.mm(last_CC, below_CC @ first_CC, out=below_CC)
    out_CC[half:, :half] = below_CC.neg_()
    return True


def damped(hessian_CC: Tensor, damping: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """The Hessian that the loop works with."""
    result_CC = hessian_CC.to(dtype, copy=True)
    diagonal_C = result_CC.diagonal()
    diagonal_C[diagonal_C == 0] = 1.0
    diagonal_C += damping * diagonal_C.mean()
    return result_CC


def _keep_share(weight_BR: Tensor, diagonal_B: Tensor, sparsity: float) -> Tensor:
    score = (weight_BR / diagonal_B[:, None]).square()
    return keep_in_rows(score.view(1, -1), sparsity).view_as(weight_BR)


def _by_columns(work_BR: Tensor, kept_BR: Tensor, upper_BB: Tensor, round_column: Round, start: int) -> Tensor:
    """One column after another, rounded by a function; the columns behind every 16 wait for a matrix product."""
    errors_BR = torch.empty_like(work_BR)
    for first in range(0, len(work_BR), _INNER):
        last = min(first + _INNER, len(work_BR))
        for column in range(first, last):
            weight_R = work_BR[column]
            fixed_R = round_column(weight_R * kept_BR[column], start + column)
            error_R = torch.div(weight_R - fixed_R, upper_BB[column, column], out=errors_BR[column])
            work_BR[column] = fixed_R
            if column + 1 < last:
                work_BR[column + 1 : last].addr_(upper_BB[column, column + 1 : last], error_R, alpha=-1)
        work_BR[last:].addmm_(upper_BB[first:last, last:].T, errors_BR[first:last], alpha=-1)
    return errors_BR
