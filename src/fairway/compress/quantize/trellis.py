"""Trellis-coded quantisation with error feedback: nearly the fewest bits that any quantiser can need.

Each column of a weight, one number for each output, becomes a cheapest path through the trellis of the packing of the
same name; what is lost is passed on to the inputs still to come by the inverse Hessian, as in GPTQ. For Gaussian
weights uniform rounding with an ideal coder takes 0.25 bit more than rate-distortion theory allows; the path, at a
price for large values, 0.06. Rows get finer steps where the loss feels their output more, `step_r ~ felt_r^(-1/2)`:
equal harm for equal bits. Marcellin & Fischer 1990; Frantar et al. 2022. Shape key: R rows (outputs), C columns
(inputs).
"""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fairway.artifact.packing import trellis
from fairway.artifact.parts import Integers, Packed
from fairway.artifact.steps import steps_of
from fairway.compress.parts import Piece, Quantizer, QuantizerConfig, deviations, removed
from fairway.compress.solve import reconstruct
from fairway.compress.steps import felt_exponents
from fairway.core.config import Source
from fairway.ops.trellis.native import search

SOURCE = Source("Marcellin & Fischer", 1990, "IEEE Transactions on Communications 38:82-93")

_ERROR = 0.24
"""Mean squared error of a path in units of half a step: what a bit is worth follows from it."""


class Config(QuantizerConfig):
    """Settings of trellis-coded quantisation."""

    memory: int = Field(default=6, ge=2, le=8)
    """Bits of state: one more halves the speed, and saves about 0.01 bit a weight."""
    felt_power: float = Field(default=0.75, ge=0, le=1)
    """1: each row's step follows how much the loss feels its output; 0: its own deviation."""
    damping: float = Field(default=0.01, gt=0)
    """Share of the Hessian's mean diagonal that is added to it."""
    block: int = Field(default=128, ge=16)
    """Columns whose errors are passed on together."""

    def build(self) -> Quantizer:
        return TrellisCoded(self)


class TrellisCoded(Quantizer):
    """Packs as `trellis`."""

    calibrated: ClassVar[bool] = True
    felt: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self.config = config

    def quantize(self, piece: Piece, strength: float) -> Packed:
        weight_RC = removed(piece.weight_RC, piece.kept_RC)
        kept_RC = _kept(weight_RC, piece.kept_RC)
        felt_R = None if piece.statistics is None else piece.statistics.felt_R
        exponents_R = felt_exponents(weight_RC, strength, felt_R, self.config.felt_power)
        paths = _Paths(weight_RC, exponents_R, kept_RC.numpy(), self.config.memory)
        if piece.statistics is None:
            for column, weight_R in enumerate(weight_RC.T):
                paths.follow(weight_R, column)
        else:
            hessian_CC = piece.statistics.hessian_CC
            order_C = torch.argsort(hessian_CC.diagonal(), descending=True, stable=True)
            reconstruct(
                weight_RC[:, order_C],
                hessian_CC[order_C][:, order_C],
                round_column=lambda weight_R, place: paths.follow(weight_R, int(order_C[place])),
                kept_RC=kept_RC[:, order_C],
                block=self.config.block,
                damping=self.config.damping,
            )
        return trellis.pack(paths.codes_RC, exponents_R, paths.kept_RC, piece.shape, self.config.memory)


class _Paths:
    """The codes of a weight, found column by column."""

    def __init__(self, weight_RC: Tensor, exponents_R: np.ndarray, kept_RC: np.ndarray, memory: int) -> None:
        self.kept_RC = kept_RC
        self.codes_RC: Integers = np.zeros(kept_RC.shape, np.int32)
        self._memory = memory
        self._half_R = steps_of(exponents_R).astype(np.float64) / 2
        self._price_R = _ERROR * np.square(self._half_R / deviations(weight_RC).numpy())

    def follow(self, weight_R: Tensor, column: int) -> Tensor:
        """The column's values on the cheapest path, which is noted."""
        kept_R = self.kept_RC[:, column]
        target_N = (weight_R.double().numpy() / self._half_R)[kept_R]
        best_N = search(target_N, self._price_R[kept_R], trellis.transitions(self._memory))
        self.codes_RC[kept_R, column] = best_N >> 1
        values_R = np.zeros(len(kept_R))
        values_R[kept_R] = best_N * self._half_R[kept_R]
        return torch.from_numpy(values_R).to(weight_R.dtype)


def _kept(weight_RC: Tensor, kept_RC: Tensor | None) -> Tensor:
    """Which weights take part in paths: those that no pruner removed, of rows that are not all zero."""
    alive_R1 = (weight_RC != 0).any(dim=1, keepdim=True)
    return alive_R1.expand(weight_RC.shape) & (torch.ones_like(alive_R1) if kept_RC is None else kept_RC)
