"""Fixing the columns of a block one after another, each error passed on to the columns behind it: the definition.

For column b: `q_b` is `w_b` with removed entries zero, rounded to a multiple of each row's step where there are steps;
`e_b = (w_b - q_b) / U_bb`; then `w_j -= U_bj e_b` for every later j. With a pattern, before every group of columns
those of each row with the least `(w / U_bb)^2` are removed. Frantar & Alistarh 2023 (arXiv:2301.00774). Weights are
held with a row for each column, so that a column is contiguous. Shape key: B columns of the block, R rows of the
weight.
"""

import torch
from torch import Tensor


def solve(
    work_BR: Tensor, kept_BR: Tensor, upper_BB: Tensor, step_R: Tensor | None, pattern: tuple[int, int] | None
) -> Tensor:
    """The errors e; `work_BR` becomes q, and `kept_BR` what is left of it. `pattern`: to remove, of how many."""
    errors_BR = torch.empty_like(work_BR)
    for column in range(len(work_BR)):
        if pattern is not None and column % pattern[1] == 0:
            group = slice(column, column + pattern[1])
            kept_BR[group] &= keep_in_group(work_BR[group], upper_BB.diagonal()[group], *pattern)
        weight_R = work_BR[column]
        fixed_R = weight_R * kept_BR[column]
        if step_R is not None:
            fixed_R = torch.round(fixed_R / step_R) * step_R
        errors_BR[column] = (weight_R - fixed_R) / upper_BB[column, column]
        work_BR[column] = fixed_R
        work_BR[column + 1 :] -= upper_BB[column, column + 1 :, None] * errors_BR[column]
    return errors_BR


def keep_in_group(weight_BR: Tensor, diagonal_B: Tensor, zeros: int, group: int) -> Tensor:
    """False at the least of each row's scores; a shorter group loses its share. Of equal scores the first go."""
    score_BR = (weight_BR / diagonal_B[:, None]).square()
    least_BR = torch.argsort(score_BR, dim=0, stable=True)[: zeros * len(score_BR) // group]
    return torch.ones_like(score_BR, dtype=torch.bool).scatter_(0, least_BR, False)
