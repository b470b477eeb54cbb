"""Weights share the centres of one-dimensional k-means, one table for each parameter.

`w ~ c[code]`; removed weights keep the value zero and a code of their own. The strength sets a price for
bits: each weight takes the centre that is cheapest in error and code length together (at a price of zero,
plain k-means). Packed densely, or as distances between survivors with fillers, as in Deep Compression. Han
et al. 2016. Shape key: R rows, C columns.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field

from fairway.artifact.packing import codebook, sparse
from fairway.artifact.parts import Packed
from fairway.compress.levels import Levels, Sorted, Start, fit_levels, price
from fairway.compress.parts import Piece, Quantizer, QuantizerConfig, removed
from fairway.core.config import Source
from fairway.core.seed import numpy_generator

SOURCE = Source("Han et al.", 2016, "arXiv:1510.00149")


class Config(QuantizerConfig):
    """Settings of weight sharing."""

    clusters: int = Field(default=256, ge=2, le=4095)
    """Most centres of a parameter; fewer are left where bits are dear."""
    start: Start = "linear"
    """First centres: evenly over the range, over the quantiles, or random weights."""
    layout: Literal["dense", "sparse"] = "dense"
    """A code for every weight, or entries for those that are not zero."""
    index_bits: int = Field(default=5, ge=1, le=16)
    """Bits of a distance between entries; longer ones take fillers."""
    seed: int = 0
    """Of random first centres."""

    def build(self) -> Quantizer:
        return KMeans(self)


class KMeans(Quantizer):
    """Packs as `codebook` or `sparse`."""

    bound = "more compress.quantize.clusters, or a lower compress.finest, would be finer"

    def __init__(self, config: Config) -> None:
        self.config = config

    def quantize(self, piece: Piece, strength: float) -> Packed:
        weight = removed(piece.weight_RC, piece.kept_RC).numpy().reshape(-1).astype(np.float64)
        alive = weight != 0
        data = Sorted(weight[alive]) if alive.any() else Sorted(np.zeros(1))
        cost = price(2.0**strength * float(np.sqrt(np.mean(data.weights**2))))
        first = data.starts(self.config.clusters, self.config.start, numpy_generator(self.config.seed, piece.name))
        levels = fit_levels(data, first, cost)
        centres = torch.from_numpy(levels.values)
        codes = np.where(alive, levels.assign(weight) + 1, 0)
        if not alive.all() or self.config.layout == "sparse":
            codes = _without_the_worthless(codes, weight, levels, cost)
        if self.config.layout == "sparse":
            bits, exponent = codebook.write_centroids(centres)
            return sparse.pack(codes, bits, exponent, piece.shape, self.config.index_bits)
        if alive.all():
            return codebook.pack(codes - 1, centres, piece.shape)
        return codebook.pack(codes, torch.cat((centres.new_zeros(1), centres)), piece.shape)


def _without_the_worthless(codes: np.ndarray, weight: np.ndarray, levels: Levels, cost: float) -> np.ndarray:
    """Codes with 0 for those survivors that, zeroed, cost less in error than their code and place cost in
    bits.
    """
    saved = np.square(weight) - np.square(weight - np.concatenate(([0.0], levels.values))[codes])
    for _ in range(4):
        share = np.clip(np.mean(codes != 0), 1e-6, 1 - 1e-6)
        place_bits = np.log2((1 - share) / share)
        length = np.concatenate(([0.0], levels.bits + place_bits))
        codes = np.where(saved < cost * length[codes], 0, codes)
    return codes
