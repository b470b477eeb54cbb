"""Only the weights that are not zero: distances between them, and places in a table of shared weights.

Weights are read row by row. An entry is the number of zeros skipped since the last entry, below `2^bits`,
and a code; where more zeros follow one another, a filler entry of value zero stands after every `2^bits -
1` of them. Code 0 is zero; code c stands for `2^exponent centroids[c - 1]`. Han et al. 2016 (relative
indices).
"""

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from fairway.artifact.parts import Integers, Packed, Packing, PackingConfig, exact_settings, refuse_unless, within
from fairway.core.config import Source

SOURCE = Source("Han et al.", 2016, "arXiv:1510.00149")

LARGEST = 4096
_EXPONENT = (-100, 100)


class Config(PackingConfig):
    """Only the weights that are not zero."""

    def build(self) -> "Sparse":
        return Sparse()


class Sparse(Packing):
    """Arrays `gaps`, `codes` (both one per entry) and `centroids`; settings `bits`, `count`, `entries`,
    `exponent`.
    """

    def plan(self, shape: tuple[int, ...], settings: Mapping[str, int]) -> dict[str, int]:
        bounds = {"bits": (1, 16), "count": (0, LARGEST), "entries": (0, prod(shape)), "exponent": _EXPONENT}
        exact_settings(settings, bounds)
        return {"gaps": settings["entries"], "codes": settings["entries"], "centroids": settings["count"]}

    def unpack(self, packed: Packed) -> Tensor:
        gaps, codes = packed.arrays["gaps"], packed.arrays["codes"]
        within(gaps, 0, (1 << packed.settings["bits"]) - 1, "The distances between weights")
        within(codes, 0, packed.settings["count"], "The codes")
        bits = packed.arrays["centroids"]
        within(bits, 0, 0xFFFF, "The bits of shared weights")
        halves = torch.from_numpy(bits.astype(np.uint16).view(np.int16).copy()).view(torch.float16).float()
        refuse_unless(bool(halves.isfinite().all()), "A table of shared weights holds numbers that are not finite.")
        table = torch.cat((torch.zeros(1), torch.ldexp(halves, torch.tensor(packed.settings["exponent"]))))
        places = np.cumsum(gaps.astype(np.int64) + 1) - 1
        refuse_unless(not places.size or places[-1] < packed.size, "An entry lies behind the end of its tensor.")
        values = torch.zeros(packed.size)
        values[torch.from_numpy(places)] = table[torch.from_numpy(codes.astype(np.int64))]
        return values.view(packed.shape)


def pack(codes: Integers, bits: Integers, exponent: int, shape: tuple[int, ...], index_bits: int) -> Packed:
    """Codes of all weights (0: zero) and the table behind codes 1, 2, ... as bits of binary16."""
    flat = codes.reshape(-1)
    places = np.flatnonzero(flat)
    entries = with_fillers(places, index_bits)
    gaps = np.diff(entries, prepend=-1) - 1
    arrays = {"gaps": gaps.astype(np.int32), "codes": flat[entries].astype(np.int32), "centroids": bits}
    settings = {"bits": index_bits, "count": len(bits), "entries": len(entries), "exponent": exponent}
    return Packed("sparse", shape, arrays, settings)


def with_fillers(places: np.ndarray, index_bits: int) -> np.ndarray:
    """Rising places and those of the fillers between them, so that no distance needs more than `index_bits`
    bits.
    """
    reach = 1 << index_bits
    gaps = np.diff(places, prepend=-1) - 1
    fillers = gaps // reach
    owner = np.repeat(np.arange(len(places)), fillers)
    order = np.arange(len(owner)) - np.repeat(np.cumsum(fillers) - fillers, fillers)
    start = np.where(owner > 0, places[owner - 1], -1) if len(places) else owner
    return np.sort(np.concatenate((places, start + (order + 1) * reach)))
