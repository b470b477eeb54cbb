"""Minus one, zero or one times a scale for each row.

Start: `s = mean|w|`, `q = clip(round(w / s), -1, 1)` (Ma et al. 2024). The strength sets a price for bits:
a weight stays only where the error that it saves is worth its code; then `s = sum|w| over survivors / their
number`, the best scale for the choice. Shape key: R rows, C columns.
"""

import torch
from pydantic import Field

from fairway.artifact.packing.rows import pack
from fairway.artifact.parts import Packed
from fairway.artifact.steps import nearest_exponents
from fairway.compress.levels import price
from fairway.compress.parts import Piece, Quantizer, QuantizerConfig, deviations, removed
from fairway.core.config import Source

SOURCE = Source("Ma et al.", 2024, "arXiv:2402.17764")

_RESOLUTION = 64


class Config(QuantizerConfig):
    """Settings of ternary weights."""

    rounds: int = Field(default=4, ge=1)
    """Times that choice and scale are found in turn."""

    def build(self) -> Quantizer:
        return Ternary(self)


class Ternary(Quantizer):
    """Packs as `rows` with codes -1, 0 and 1."""

    coarsest = 4.0
    bound = "it has no more than three levels"

    def __init__(self, config: Config) -> None:
        self.rounds = config.rounds

    def quantize(self, piece: Piece, strength: float) -> Packed:
        weight_RC = removed(piece.weight_RC, piece.kept_RC)
        size_RC = weight_RC.abs()
        multiplier_R = price(2.0**strength) * deviations(weight_RC).square()[:, None]
        scale_R = size_RC.mean(dim=1, keepdim=True).double().clamp_min(1e-30)
        kept_RC = size_RC > scale_R / 2
        for _ in range(self.rounds):
            share = kept_RC.double().mean().clamp(1e-6, 1 - 1e-6)
            bits = 1 - torch.log2(share) + torch.log2(1 - share)
            threshold_R = scale_R / 2 + multiplier_R * bits.clamp_min(0) / (2 * scale_R)
            kept_RC = size_RC > threshold_R
            count_R = kept_RC.sum(dim=1, keepdim=True)
            mean_R = (size_RC * kept_RC).sum(dim=1, keepdim=True).double() / count_R.clamp_min(1)
            scale_R = torch.where(count_R > 0, mean_R, scale_R)
        codes_RC = (torch.sign(weight_RC) * kept_RC).to(torch.int32)
        exponents_R = nearest_exponents(scale_R.squeeze(1).numpy(), _RESOLUTION)
        return pack(codes_RC.numpy(), exponents_R, piece.shape, _RESOLUTION)
