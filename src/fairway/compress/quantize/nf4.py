"""Sixteen levels at the quantiles of a normal distribution, times the largest magnitude of each group.

`code = nearest level of w / absmax_g`. Where the cap asks for fewer than four bits, each weight takes the
level that is cheapest in error and code length together. Dettmers et al. 2023 (QLoRA). Shape key: R rows, C
columns.
"""

import numpy as np
from pydantic import Field

from fairway.artifact.packing.nf4 import LEVELS, RESOLUTION, ZERO, pack
from fairway.artifact.parts import Packed
from fairway.artifact.steps import nearest_exponents, steps_of
from fairway.compress.levels import fixed_levels, price
from fairway.compress.parts import Piece, Quantizer, QuantizerConfig, removed
from fairway.core.config import Source

SOURCE = Source("Dettmers et al.", 2023, "arXiv:2305.14314")


class Config(QuantizerConfig):
    """Settings of NF4."""

    group: int = Field(default=64, ge=2)
    """Weights that share a scale."""

    def build(self) -> Quantizer:
        return NormalFloat(self)


class NormalFloat(Quantizer):
    """Packs as `nf4`."""

    bound = "it has no more than sixteen levels"

    def __init__(self, config: Config) -> None:
        self.group = config.group

    def quantize(self, piece: Piece, strength: float) -> Packed:
        weight = removed(piece.weight_RC, piece.kept_RC).numpy().reshape(-1).astype(np.float64)
        padded = np.pad(weight, (0, -len(weight) % self.group)).reshape(-1, self.group)
        exponents = nearest_exponents(_filled(np.abs(padded).max(axis=1)), RESOLUTION)
        relative = (padded / steps_of(exponents, RESOLUTION)[:, None]).reshape(-1)[: len(weight)]
        deviation = float(np.sqrt(np.mean(relative**2)))
        table = np.array(LEVELS)
        levels = fixed_levels(table, relative, price(2.0**strength * deviation))
        places = np.searchsorted(table, levels.values)
        codes = places[levels.assign(relative)]
        return pack(np.where(weight == 0, ZERO, codes).astype(np.int32), exponents, piece.shape, self.group)


def _filled(scales: np.ndarray) -> np.ndarray:
    """Groups of zeros take the smallest scale there is, so that theirs are not rare numbers far from all others."""
    alive = scales > 0
    return np.where(alive, scales, scales[alive].min() if alive.any() else 1.0)
