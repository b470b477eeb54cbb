"""Integers times one step per row, or per group of neighbouring columns.

`W_rc = step_r q_rc`, `step_r = 2^((base + steps_r) / resolution)`. Steps lie on a logarithmic grid, because
a step may be off by some per cent without loss, and a few bits per row then suffice. Rows are all leading
dimensions together.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairway.artifact.parts import (
    Integers,
    Packed,
    Packing,
    PackingConfig,
    exact_settings,
    refuse_unless,
    rows_of,
    within,
)
from fairway.artifact.steps import LARGEST, OCTAVES, RESOLUTION, steps_of
from fairway.core.config import Source

SOURCE = Source("Parameter Golf contributors", 2026, "https://github.com/openai/parameter-golf")


class Config(PackingConfig):
    """Integers with one step per row."""

    def build(self) -> "Rows":
        return Rows()


class Rows(Packing):
    """Arrays `steps` (one per row) and `codes` (row by row); settings `base` and `resolution`."""

    def plan(self, shape: tuple[int, ...], settings: Mapping[str, int]) -> dict[str, int]:
        bounds = {"base": (-64 * OCTAVES, 64 * OCTAVES), "group": (0, 2**31 - 1), "resolution": (1, 64)}
        exact_settings(settings, bounds)
        rows, columns = rows_of(shape)
        group = settings["group"] or columns
        refuse_unless(columns % group == 0, f"Groups of {group} do not divide {columns} columns.")
        return {"steps": rows * columns // group, "codes": rows * columns}

    def unpack(self, packed: Packed) -> Tensor:
        resolution = packed.settings["resolution"]
        exponents = packed.arrays["steps"].astype(np.int64) + packed.settings["base"]
        within(exponents, -OCTAVES * resolution, OCTAVES * resolution, "The steps of rows")
        within(packed.arrays["codes"], -LARGEST, LARGEST, "The codes")
        steps = torch.from_numpy(steps_of(exponents, resolution))
        codes = torch.from_numpy(packed.arrays["codes"].astype(np.float32))
        return codes.view(len(steps), -1).mul_(steps[:, None]).view(packed.shape)

    def row_steps(self, packed: Packed) -> Tensor | None:
        if packed.settings["group"]:
            return None
        exponents = packed.arrays["steps"].astype(np.int64) + packed.settings["base"]
        return torch.from_numpy(steps_of(exponents, packed.settings["resolution"]))


def pack(
    codes: Integers,
    exponents: np.ndarray[Any, Any],
    shape: tuple[int, ...],
    resolution: int = RESOLUTION,
    group: int = 0,
) -> Packed:
    """Codes with steps `2^(exponent / resolution)`: one exponent per row, or per `group` neighbouring
    columns of each.
    """
    base = int(np.median(exponents)) if exponents.size else 0
    arrays = {"steps": (exponents - base).astype(np.int32), "codes": codes.reshape(-1).astype(np.int32)}
    return Packed("rows", shape, arrays, {"base": base, "group": group, "resolution": resolution})
