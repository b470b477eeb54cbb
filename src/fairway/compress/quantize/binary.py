"""The sign of each weight times a scale for each row or group.

`q = sign(w)`, `s = mean|w|`, the best scale for signs (Rastegari et al. 2016). Where the cap asks for less than a bit
a weight (strengths above 0), weights below a share of their group's mean magnitude all take the sign +1, and the scale
is the mean of `q w`. Removed weights stay zero. Shape key: R rows, C columns.
"""

import numpy as np
import torch
from pydantic import Field

from fairway.artifact.packing.rows import pack
from fairway.artifact.parts import Packed
from fairway.artifact.steps import nearest_exponents
from fairway.compress.parts import Piece, Quantizer, QuantizerConfig, removed
from fairway.core.config import Source

SOURCE = Source("Rastegari et al.", 2016, "arXiv:1603.05279")

_RESOLUTION = 64


class Config(QuantizerConfig):
    """Settings of binary weights."""

    group: int | None = Field(default=None, ge=1)
    """Columns that share a scale; all of a row if not given."""

    def build(self) -> Quantizer:
        return Binary(self)


class Binary(Quantizer):
    """Packs as `rows` with codes -1 and 1 (0 where removed)."""

    coarsest = 6.0
    bound = "it has no more than two levels, and compress.quantize.group alone can add scales"

    def __init__(self, config: Config) -> None:
        self.group = config.group

    def quantize(self, piece: Piece, strength: float) -> Packed:
        weight_RC = removed(piece.weight_RC, piece.kept_RC)
        columns = weight_RC.shape[1]
        group = self.group if self.group is not None and columns % self.group == 0 else columns
        grouped = weight_RC.reshape(-1, group)
        alive = grouped != 0
        codes = torch.where(alive, torch.where(grouped > 0, 1, -1), 0)
        codes = torch.where(alive & (grouped.abs() < self._blur(strength) * grouped.abs().mean()), 1, codes)
        mean = (codes * grouped).sum(dim=1).double() / alive.sum(dim=1).clamp_min(1)
        scales = torch.where(mean > 0, mean, mean[mean > 0].mean() if bool((mean > 0).any()) else 1.0)
        exponents = nearest_exponents(scales.numpy(), _RESOLUTION)
        stored = 0 if group == columns else group
        return pack(codes.numpy().astype(np.int32), exponents, piece.shape, _RESOLUTION, stored)

    @staticmethod
    def _blur(strength: float) -> float:
        """Share of the mean magnitude below which a sign is not worth its bit."""
        return max(0.0, 2.0**strength - 1.0) / 4
