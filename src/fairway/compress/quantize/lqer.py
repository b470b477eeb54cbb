"""Rounding to nearest, and outer products that bring back most of what rounding lost.

`E = W - Q(W)`; with `S S^T` the second moments of the inputs (or their diagonal), `A B = svd_K(E S) S^-1` is the
correction of rank K with the least error of the outputs, `||(E - A B) S||`; what is left is the sum of the squared
singular values behind the first K. LQER takes no S, L2QER a diagonal. Weights without statistics are corrected with
S = 1; pruned weights get no correction, because outer products would not keep their zeros. Zhang et al. 2024.
Shape key: R rows, C columns (inputs), K outer products.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fairway.artifact.packing import lowrank
from fairway.artifact.parts import Packed
from fairway.artifact.steps import steps_of
from fairway.compress.parts import Piece, Quantizer, QuantizerConfig, Statistics, removed
from fairway.compress.solve import damped
from fairway.compress.steps import row_exponents
from fairway.core.config import Source
from fairway.core.log import say_once

SOURCE = Source("Zhang et al.", 2024, "arXiv:2402.02446")


class Config(QuantizerConfig):
    """Settings of low-rank correction."""

    rank: int = Field(default=4, ge=0)
    """Outer products for each weight; at most its smaller side."""
    weighting: Literal["none", "inputs", "hessian"] = "inputs"
    """Which error is least: of the weights, of the weights times the inputs' sizes, or of the outputs."""
    row_power: float = Field(default=1.0, ge=0, le=1)
    """1: each row's step follows its own deviation; 0: one step for the whole weight."""
    damping: float = Field(default=0.01, gt=0)
    """Share of the second moments' mean that is added to each."""

    def build(self) -> Quantizer:
        return LowRankCorrection(self)


class LowRankCorrection(Quantizer):
    """Packs as `lowrank`."""

    calibrated: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self.config = config

    def quantize(self, piece: Piece, strength: float) -> Packed:
        weight_RC = removed(piece.weight_RC, piece.kept_RC)
        exponents_R = row_exponents(weight_RC, strength, self.config.row_power)
        steps_R = torch.from_numpy(steps_of(exponents_R))
        codes_RC = torch.round(weight_RC / steps_R[:, None])
        rank = min(self.config.rank, *weight_RC.shape)
        if piece.kept_RC is not None and rank:
            say_once("Pruned weights get no low-rank correction: it would not keep their zeros.")
            rank = 0
        error_RC = weight_RC.double() - (codes_RC * steps_R[:, None]).double()
        left_RK, right_KC = correction(error_RC, self._factor(piece.statistics), rank)
        return lowrank.pack(codes_RC.to(torch.int32).numpy(), exponents_R, left_RK, right_KC, piece.shape)

    def _factor(self, statistics: Statistics | None) -> Tensor | None:
        if statistics is None or self.config.weighting == "none":
            return None
        moments_CC = damped(statistics.hessian_CC, self.config.damping)
        if self.config.weighting == "inputs":
            return moments_CC.diagonal().sqrt().diag()
        return torch.linalg.cholesky(moments_CC)


def correction(error_RC: Tensor, factor_CC: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (R, K) and (K, C) whose product is nearest to the error, seen through a lower triangular factor.

    K is `rank`, or the error's own rank where that is less.
    """
    seen_RC = error_RC if factor_CC is None else error_RC @ factor_CC
    left_RX, sizes_X, right_XC = torch.linalg.svd(seen_RC, full_matrices=False)
    rank = min(rank, int((sizes_X > 1e-9 * sizes_X[0]).sum()))
    root_K = sizes_X[:rank].sqrt()
    right_KC = root_K[:, None] * right_XC[:rank]
    if factor_CC is not None:
        right_KC = torch.linalg.solve_triangular(factor_CC, right_KC, upper=False, left=False)
    return left_RX[:, :rank] * root_K, right_KC
