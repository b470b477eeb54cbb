"""Floating-point numbers as they are, in 16 or 32 bits.

Each number's bytes go to one array per byte place, so that exponents, which repeat, are coded apart from
mantissas. Formats: IEEE 754 binary16 and binary32, and bfloat16.
"""

from collections.abc import Mapping
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fairway.artifact.parts import Packed, Packing, PackingConfig, exact_settings, refuse_unless, within
from fairway.core.config import Source

SOURCE = Source("IEEE", 2019, "IEEE 754-2019")

Format = Literal["float16", "bfloat16", "float32"]
FORMATS: tuple[Format, ...] = ("float16", "bfloat16", "float32")
_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Config(PackingConfig):
    """Floating-point numbers as they are."""

    def build(self) -> "Raw":
        return Raw()


class Raw(Packing):
    """Arrays `byte0`, `byte1`, ... from the least significant; setting `format` is a place in `FORMATS`."""

    def plan(self, shape: tuple[int, ...], settings: Mapping[str, int]) -> dict[str, int]:
        exact_settings(settings, {"format": (0, len(FORMATS) - 1)})
        width = _TYPES[FORMATS[settings["format"]]].itemsize
        return {f"byte{place}": prod(shape) for place in range(width)}

    def unpack(self, packed: Packed) -> Tensor:
        planes = list(packed.arrays.values())
        for plane in planes:
            within(plane, 0, 255, "Bytes")
        joined = np.stack(planes, axis=-1).astype(np.uint8).reshape(-1)
        kind = _TYPES[FORMATS[packed.settings["format"]]]
        values = torch.from_numpy(joined).view(kind).float().view(packed.shape)
        refuse_unless(bool(values.isfinite().all()), "A tensor holds numbers that are not finite.")
        return values


def pack(tensor: Tensor, form: Format) -> Packed:
    """A tensor in one of `FORMATS`, rounded to nearest; values beyond the format's range become its
    largest.
    """
    kind = _TYPES[form]
    limit = torch.finfo(kind).max
    rounded = tensor.detach().cpu().float().clamp(-limit, limit).to(kind).contiguous()
    octets = rounded.view(-1).view(torch.uint8).numpy().reshape(-1, kind.itemsize)
    arrays = {f"byte{place}": octets[:, place].astype(np.int32) for place in range(kind.itemsize)}
    return Packed("raw", tuple(tensor.shape), arrays, {"format": FORMATS.index(form)})
