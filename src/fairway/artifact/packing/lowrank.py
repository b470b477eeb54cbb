"""Integers times one step per row, plus a few outer products of integers.

`W_rc = step_r q_rc + sum_k step_k a_rk b_kc`, steps `2^(exponent / 8)`. The outer products carry what rounding lost,
as in LQER. Shape key: R rows (all leading dimensions together), C columns, K outer products.
"""

from collections.abc import Mapping

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
from fairway.artifact.steps import LARGEST, OCTAVES, RESOLUTION, nearest_exponents, steps_of
from fairway.core.config import Source

SOURCE = Source("Zhang et al.", 2024, "arXiv:2402.02446")

LARGEST_FACTOR = 127
_LIMIT = OCTAVES * RESOLUTION


class Config(PackingConfig):
    """Integers with one step per row, plus outer products."""

    def build(self) -> "LowRank":
        return LowRank()


class LowRank(Packing):
    """Arrays `steps` (R), `codes` (R C), `scales` (K), `left` (R K), `right` (K C); settings `base`, `rank`."""

    def plan(self, shape: tuple[int, ...], settings: Mapping[str, int]) -> dict[str, int]:
        rows, columns = rows_of(shape)
        exact_settings(settings, {"base": (-_LIMIT, _LIMIT), "rank": (0, min(rows, columns))})
        rank = settings["rank"]
        return {"steps": rows, "codes": rows * columns, "scales": rank, "left": rows * rank, "right": rank * columns}

    def unpack(self, packed: Packed) -> Tensor:
        (rows, columns), rank, arrays = rows_of(packed.shape), packed.settings["rank"], packed.arrays
        within(arrays["codes"], -LARGEST, LARGEST, "The codes")
        for side in ("left", "right"):
            within(arrays[side], -LARGEST_FACTOR, LARGEST_FACTOR, "The factors")
        steps_R = _steps(arrays["steps"].astype(np.int64) + packed.settings["base"])
        scales_K = _steps(arrays["scales"].astype(np.int64))
        rounded_RC = torch.from_numpy(arrays["codes"].astype(np.float32)).view(rows, columns) * steps_R[:, None]
        result_RC = rounded_RC.double()
        left_RK = torch.from_numpy(arrays["left"].astype(np.float64)).view(rows, rank)
        right_KC = torch.from_numpy(arrays["right"].astype(np.float64)).view(rank, columns)
        for scale, left_R, right_C in zip(scales_K.double(), left_RK.T, right_KC, strict=True):
            result_RC += scale * torch.outer(left_R, right_C)
        values = result_RC.float().view(packed.shape)
        refuse_unless(bool(values.isfinite().all()), "A tensor holds numbers that are not finite.")
        return values


def pack(codes: Integers, exponents: np.ndarray, left_RK: Tensor, right_KC: Tensor, shape: tuple[int, ...]) -> Packed:
    """Codes with steps `2^(exponent / 8)`, and factors, each outer product rounded to 255 levels a side."""
    base = int(np.median(exponents)) if exponents.size else 0
    left, left_size = _levels(left_RK.double().T)
    right, right_size = _levels(right_KC.double())
    scales = nearest_exponents((left_size * right_size).numpy())
    arrays = {
        "steps": (exponents - base).astype(np.int32),
        "codes": codes.reshape(-1).astype(np.int32),
        "scales": scales.astype(np.int32),
        "left": left.T.reshape(-1).astype(np.int32),
        "right": right.reshape(-1).astype(np.int32),
    }
    return Packed("lowrank", shape, arrays, {"base": base, "rank": len(right_KC)})


def _levels(values_KX: Tensor) -> tuple[np.ndarray, Tensor]:
    """Integers up to 127 for each row, and the row's size of one."""
    size_K = values_KX.abs().amax(dim=1) / LARGEST_FACTOR
    safe_K = torch.where(size_K > 0, size_K, torch.ones_like(size_K))
    return torch.round(values_KX / safe_K[:, None]).numpy(), size_K


def _steps(exponents: np.ndarray) -> Tensor:
    within(exponents, -_LIMIT, _LIMIT, "The steps")
    return torch.from_numpy(steps_of(exponents))
