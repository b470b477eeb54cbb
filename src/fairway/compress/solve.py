"""The column loop of GPTQ and SparseGPT: fix one input's weights, let all later inputs make up for the
error.

`H = 2 X X^T / n`, dead inputs set apart, damped by a share of its mean diagonal; U the upper Cholesky
factor of `H^-1`. For each column i, left to right: `q` is the column with removed entries zero, then
rounded; `e = (w_i - q) / U_ii`; later columns take `-e U_i,later`. Frantar et al. 2022 (arXiv:2210.17323),
Frantar & Alistarh 2023 (arXiv:2301.00774). Half the sum of e^2 is the increase `1/2 tr(D H D^T)` of the
layer's loss, D the total change.

Only within a block is this done column by column (`ops/columns`). With R upper and `R R^T = H`, so that `U = R^-1`,
the loss is `1/2 |D R|^2`, and a block whose inputs make up best for all changes D before it is `w - D R_before,block
U_block`: one Cholesky factor, the inverses of its diagonal blocks, and one matrix product for each block. The weight is
held transposed, so that a column is contiguous. Shape key: R rows, C columns (inputs), B columns of a block, P columns
before it.
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
    given_CR = weight_RC.T.contiguous()
    given_CR = torch.where((hessian_CC.diagonal() == 0)[:, None], torch.zeros((), dtype=given_CR.dtype), given_CR)
    root_CC, uppers = factors(hessian_CC, damping, block, given_CR.dtype)
    work_CR, change_CR = given_CR.clone(), torch.empty_like(given_CR)
    kept_CR = torch.ones_like(work_CR, dtype=torch.bool) if kept_RC is None else kept_RC.T.contiguous().clone()
    loss = 0.0
    for start, upper_BB in zip(range(0, len(work_CR), block), uppers, strict=True):
        here = slice(start, start + block)
        work_BR, kept_BR = work_CR[here], kept_CR[here]
        if start:
            work_BR.addmm_(upper_BB.T, root_CC[:start, here].T @ change_CR[:start], alpha=-1)
        if selection is not None and pattern is None:
            kept_BR &= _keep_share(work_BR, upper_BB.diagonal(), selection.sparsity)
        if round_column is None:
            errors_BR = solve(work_BR, kept_BR, upper_BB, step_R, pattern)
        else:
            assert pattern is None
            errors_BR = _by_columns(work_BR, kept_BR, upper_BB, round_column, start)
        torch.sub(work_BR, given_CR[here], out=change_CR[here])
        loss += 0.5 * float(errors_BR.double().square().sum())
    return Solution(work_CR.T.contiguous(), kept_CR.T.contiguous(), loss)


def factors(
    hessian_CC: Tensor, damping: float, block: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor]]:
    """R with `R R^T` the damped Hessian, upper triangular (what lies below its diagonal blocks is to be ignored), and
    the inverses of its diagonal blocks; in float64 first where `dtype` is not enough.
    """
    for precision in (dtype, torch.float64):
        root_CC = damped(hessian_CC, damping, precision)
        uppers = _into_root(root_CC, block)
        if uppers is not None:
            return root_CC.to(dtype), [upper_BB.to(dtype) for upper_BB in uppers]
    raise TrainingError(
        f"The Hessian of a layer with {len(hessian_CC)} inputs cannot be inverted; "
        "more calibration text or more damping would help."
    )


def _into_root(matrix_CC: Tensor, block: int) -> list[Tensor] | None:
    """Puts the root in place of the matrix, block by block from the last; None where there is no root.

    Reversing rows and columns turns a lower Cholesky factor into an upper one.
    """
    uppers: list[Tensor] = []
    for start in reversed(range(0, len(matrix_CC), block)):
        stop = min(start + block, len(matrix_CC))
        left_PB = matrix_CC[:stop, start:stop]
        if stop < len(matrix_CC):
            left_PB.addmm_(matrix_CC[:stop, stop:], matrix_CC[start:stop, stop:].T, alpha=-1)
        lower_BB, failed = torch.linalg.cholesky_ex(left_PB[start:].flip(0, 1))
        if int(failed):
            return None
        identity_BB = torch.eye(stop - start, dtype=matrix_CC.dtype)
        upper_BB = torch.linalg.solve_triangular(lower_BB, identity_BB, upper=False).flip(0, 1)
        left_PB[start:] = lower_BB.flip(0, 1)
        left_PB[:start] = left_PB[:start] @ upper_BB.T
        uppers.append(upper_BB)
    return uppers[::-1]


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
