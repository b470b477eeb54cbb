"""Rounding with error feedback: each input's rounding error is made up for by the inputs still to be
rounded.

The column loop of `compress/solve.py` without a mask: `e = (w_i - round(w_i)) / U_ii`, later columns take
`-e U_i,later`. Inputs with the largest second moment go first if `order` is set. Weights without statistics
(embeddings, heads, maps that the calibration text never reached) are rounded to nearest. Frantar et al.
2022. Shape key: R rows, C columns.
"""

from typing import ClassVar

import torch
from pydantic import Field

from fairway.artifact.packing.rows import pack
from fairway.artifact.parts import Packed
from fairway.artifact.steps import steps_of
from fairway.compress.parts import Piece, Quantizer, QuantizerConfig, removed
from fairway.compress.solve import reconstruct
from fairway.compress.steps import row_exponents
from fairway.core.config import Source

SOURCE = Source("Frantar et al.", 2022, "arXiv:2210.17323")


class Config(QuantizerConfig):
    """Settings of GPTQ."""

    row_power: float = Field(default=1.0, ge=0, le=1)
    """1: each row's step follows its own deviation; 0: one step for the whole weight."""
    damping: float = Field(default=0.01, gt=0)
    """Share of the Hessian's mean diagonal that is added to it."""
    block: int = Field(default=128, ge=16)
    """Columns whose errors are passed on together."""
    order: bool = True
    """Round the inputs with the largest second moment first."""

    def build(self) -> Quantizer:
        return Gptq(self)


class Gptq(Quantizer):
    """Packs as `rows`."""

    calibrated: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self.config = config

    def quantize(self, piece: Piece, strength: float) -> Packed:
        weight_RC = removed(piece.weight_RC, piece.kept_RC)
        exponents_R = row_exponents(weight_RC, strength, self.config.row_power)
        steps_R = torch.from_numpy(steps_of(exponents_R)).to(weight_RC.dtype)
        if piece.statistics is not None:
            weight_RC = self._rounded(weight_RC, piece, steps_R)
        codes_RC = torch.round(weight_RC / steps_R[:, None]).to(torch.int32).numpy()
        return pack(codes_RC, exponents_R, piece.shape)

    def _rounded(self, weight_RC: torch.Tensor, piece: Piece, steps_R: torch.Tensor) -> torch.Tensor:
        assert piece.statistics is not None
        hessian_CC = piece.statistics.hessian_CC
        order_C = torch.arange(len(hessian_CC))
        if self.config.order:
            order_C = torch.argsort(hessian_CC.diagonal(), descending=True, stable=True)
        solution = reconstruct(
            weight_RC[:, order_C],
            hessian_CC[order_C][:, order_C],
            step_R=steps_R,
            kept_RC=None if piece.kept_RC is None else piece.kept_RC[:, order_C],
            block=self.config.block,
            damping=self.config.damping,
        )
        result_RC = torch.empty_like(weight_RC)
        result_RC[:, order_C] = solution.weight_RC
        return result_RC
