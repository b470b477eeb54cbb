"""Places in a table of shared weights.

`w = 2^exponent c[code]`, c a table of numbers in IEEE 754 binary16. Han et al. 2016 (weight sharing).
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
    """Places in a table of shared weights."""

    def build(self) -> "Codebook":
        return Codebook()


class Codebook(Packing):
    """Arrays `centroids` (the bits of binary16) and `codes`; settings `count` and `exponent`."""

    def plan(self, shape: tuple[int, ...], settings: Mapping[str, int]) -> dict[str, int]:
        exact_settings(settings, {"count": (1, LARGEST), "exponent": _EXPONENT})
        return {"centroids": settings["count"], "codes": prod(shape)}

    def unpack(self, packed: Packed) -> Tensor:
        within(packed.arrays["codes"], 0, packed.settings["count"] - 1, "The codes")
        table = read_centroids(packed.arrays["centroids"], packed.settings["exponent"])
        return table[torch.from_numpy(packed.arrays["codes"].astype(np.int64))].view(packed.shape)


def pack(codes: Integers, centroids: Tensor, shape: tuple[int, ...]) -> Packed:
    """Codes into a table of numbers; the table is rounded to binary16."""
    bits, exponent = write_centroids(centroids)
    arrays = {"centroids": bits, "codes": codes.reshape(-1).astype(np.int32)}
    return Packed("codebook", shape, arrays, {"count": len(bits), "exponent": exponent})


def write_centroids(centroids: Tensor) -> tuple[Integers, int]:
    """Bits of binary16 of the numbers over a power of two that brings the largest to between 1/2 and 1."""
    largest = float(centroids.abs().max()) if centroids.numel() else 0.0
    exponent = int(np.clip(np.frexp(largest)[1], *_EXPONENT)) if largest > 0 else 0
    halves = torch.ldexp(centroids.double(), torch.tensor(-exponent)).half()
    return halves.view(torch.int16).numpy().astype(np.int32) & 0xFFFF, exponent


def read_centroids(bits: Integers, exponent: int) -> Tensor:
    """The numbers that `write_centroids` wrote, in float32."""
    within(bits, 0, 0xFFFF, "The bits of shared weights")
    table = torch.from_numpy(bits.astype(np.uint16).view(np.int16).copy()).view(torch.float16).float()
    refuse_unless(bool(table.isfinite().all()), "A table of shared weights holds numbers that are not finite.")
    return torch.ldexp(table, torch.tensor(exponent))
