"""Removes weights one by one, each time correcting all others by the full inverse Hessian.

For every output row, with `H = 2 X X^T / n` of its layer: remove the q of least `w_q^2 / (2 [H^-1]_qq)`,
add `-(w_q / [H^-1]_qq) H^-1 e_q` to the row, and take q out of the inverse, `H^-1 -= H^-1 e_q e_q^T H^-1 /
[H^-1]_qq`. On a quadratic loss the result is the least-squares refit on the surviving inputs. Hassibi &
Stork 1993; layer by layer: Frantar & Alistarh 2022. What each removal takes out of the inverse is kept as one vector,
in place of an inverse for each row; K removals cost C K^2 for each row. Shape key: R rows (outputs), C columns
(inputs), K weights removed so far.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fairway.compress.calibrate import sequentially
from fairway.compress.masks import SparsityConfig, apply, count_of, prunable
from fairway.compress.parts import Pruned, Pruner, Statistics
from fairway.compress.solve import damped
from fairway.core.config import Source
from fairway.core.errors import ConfigError
from fairway.core.log import Listener, silent
from fairway.model.lm import LanguageModel

SOURCE = Source("Hassibi & Stork", 1993, "NeurIPS 5:164-171")

_NUMBERS_AT_ONCE = 1 << 24


class Config(SparsityConfig):
    """Settings of the optimal brain surgeon."""

    damping: float = Field(default=0.01, ge=0)
    """Share of the Hessian's mean diagonal that is added to it."""

    def build(self) -> Pruner:
        if self.pattern is not None:
            raise ConfigError("compress.prune.pattern does not go with obs; sparsegpt and wanda know patterns.")
        return BrainSurgeon(self)


class BrainSurgeon(Pruner):
    """Prunes and adjusts the linear maps that the calibration text reaches."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:
        weights = prunable(model)
        masks: dict[str, Tensor] = {}

        def treat(name: str, statistics: Statistics) -> Tensor | None:
            if name not in weights:
                return None
            hessian_CC = damped(statistics.hessian_CC, self.config.damping)
            count = count_of(self.config.sparsity, len(hessian_CC))
            weight_RC, masks[name] = remove(weights[name], hessian_CC, count)
            return weight_RC

        sequentially(model, calibration, treat, listener)
        return Pruned(model, apply(model, masks))


def remove(weight_RC: Tensor, hessian_CC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Every row without `count` of its weights and the others corrected; and which were kept."""
    inverse_CC = torch.linalg.inv(hessian_CC.double()).to(weight_RC.dtype)
    size = max(1, _NUMBERS_AT_ONCE // max(1, count * len(inverse_CC)))
    parts = [_remove(rows_RC, inverse_CC, count) for rows_RC in weight_RC.split(size)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _remove(weight_RC: Tensor, inverse_CC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    weight_RC, row_R = weight_RC.clone(), torch.arange(len(weight_RC))
    tiny = torch.finfo(weight_RC.dtype).tiny
    kept_RC = torch.ones_like(weight_RC, dtype=torch.bool)
    diagonal_RC = inverse_CC.diagonal().expand_as(weight_RC).clone()
    taken_RKC = weight_RC.new_empty(len(weight_RC), count, len(inverse_CC))
    for done in range(count):
        score_RC = weight_RC.square() / diagonal_RC.clamp_min(tiny)
        place_R = score_RC.masked_fill(~kept_RC, torch.inf).argmin(dim=1)
        before_RKC = taken_RKC[:, :done]
        share_R1K = before_RKC[row_R, :, place_R][:, None, :]
        column_RC = torch.baddbmm(inverse_CC[place_R][:, None, :], share_R1K, before_RKC, alpha=-1)[:, 0]
        pivot_R1 = column_RC.gather(1, place_R[:, None]).clamp_min(tiny)
        weight_RC -= weight_RC.gather(1, place_R[:, None]) / pivot_R1 * column_RC
        taken_RKC[:, done] = column_RC / pivot_R1.sqrt()
        diagonal_RC -= taken_RKC[:, done].square()
        kept_RC[row_R, place_R] = False
        weight_RC.mul_(kept_RC)
    return weight_RC, kept_RC
