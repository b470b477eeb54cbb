"""Sixteen levels that suit Gaussian weights, times the largest magnitude of each group.

`w = absmax_g level[code]`, groups of neighbouring weights in reading order; the levels are the quantiles of
a normal distribution scaled to [-1, 1] with an exact zero. absmax lies on a logarithmic grid. Dettmers et
al. 2023.
"""

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from fairway.artifact.parts import Integers, Packed, Packing, PackingConfig, exact_settings, within
from fairway.artifact.steps import OCTAVES, steps_of
from fairway.core.config import Source

SOURCE = Source("Dettmers et al.", 2023, "arXiv:2305.14314")

LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
ZERO = 7
RESOLUTION = 32
"""Scales per octave: 1 % apart, as finely as 8 bits in double quantisation."""


class Config(PackingConfig):
    """Sixteen levels times the largest magnitude of each group."""

    def build(self) -> "NormalFloat":
        return NormalFloat()


class NormalFloat(Packing):
    """Arrays `scales` (one per group) and `codes`; settings `base` and `group`."""

    def plan(self, shape: tuple[int, ...], settings: Mapping[str, int]) -> dict[str, int]:
        limit = OCTAVES * RESOLUTION
        exact_settings(settings, {"base": (-limit, limit), "group": (1, 2**31 - 1)})
        return {"scales": -(-prod(shape) // settings["group"]), "codes": prod(shape)}

    def unpack(self, packed: Packed) -> Tensor:
        exponents = packed.arrays["scales"].astype(np.int64) + packed.settings["base"]
        within(exponents, -OCTAVES * RESOLUTION, OCTAVES * RESOLUTION, "The scales of groups")
        within(packed.arrays["codes"], 0, len(LEVELS) - 1, "The codes")
        values = torch.tensor(LEVELS)[torch.from_numpy(packed.arrays["codes"].astype(np.int64))]
        scales = torch.from_numpy(steps_of(exponents, RESOLUTION))
        return (values * scales.repeat_interleave(packed.settings["group"])[: packed.size]).view(packed.shape)


def pack(codes: Integers, exponents: np.ndarray, shape: tuple[int, ...], group: int) -> Packed:
    """Codes of all weights and the exponents of their groups' scales."""
    base = int(np.median(exponents))
    arrays = {"scales": (exponents - base).astype(np.int32), "codes": codes.reshape(-1).astype(np.int32)}
    return Packed("nf4", shape, arrays, {"base": base, "group": group})
