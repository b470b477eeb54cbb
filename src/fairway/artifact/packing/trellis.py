"""Whole numbers whose even or odd half is chosen by a path, times a step for each row.

`w_rc = step_r / 2 (2 k_rc + s_rc mod 2)`: down each column runs a state of m bits, s = 0 before the first row, and each
code moves it, `s' = next[s, k mod 2]`. So a code of a coarse grid stands for a value of a grid twice as fine, and the
paths differ in so many places that the error of a best path is near the least that is possible for the bits.
Ungerboeck 1982 (the codes); Marcellin & Fischer 1990 (quantisation). Rows are sorted into classes of like spread, each
with its own frequencies; removed weights are left out of the path. Shape key: R rows, C columns, S states, B branches.
"""

from collections.abc import Mapping
from functools import cache
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
from fairway.artifact.table import Histogram
from fairway.core.config import Source

SOURCE = Source("Marcellin & Fischer", 1990, "IEEE Transactions on Communications 38:82-93")

MEMORIES = (2, 8)
"""Fewest and most bits of state."""
_MOST_CLASSES = 8
_CHECKS = {2: (0o5, 0o2), 3: (0o13, 0o4), 4: (0o23, 0o4), 5: (0o45, 0o10), 6: (0o103, 0o24), 7: (0o235, 0o126),
           8: (0o515, 0o362)}  # fmt: skip
"""Parity-check polynomials of Ungerboeck's codes for one dimension, by bits of state."""


class Config(PackingConfig):
    """Whole numbers along a path."""

    def build(self) -> "Trellis":
        return Trellis()


class Trellis(Packing):
    """Arrays `steps` and `classes` (by row), `kept` (by weight where some were removed), `codes0`, `codes1`, ... (by
    class); settings `base`, `classes`, `count` (weights that were not removed) and `memory`."""

    def plan(self, shape: tuple[int, ...], settings: Mapping[str, int]) -> dict[str, int]:
        rows, columns = rows_of(shape)
        octaves = (-64 * OCTAVES, 64 * OCTAVES)
        counts = {"classes": (1, _MOST_CLASSES), "count": (0, rows * columns), "memory": MEMORIES}
        exact_settings(settings, {"base": octaves, **counts})
        classes, whole = settings["classes"], settings["count"] == rows * columns
        refuse_unless(whole or classes == 1, "Only rows without removed weights come in classes.")
        lengths = {"steps": rows, "classes": rows if classes > 1 else 0, "kept": 0 if whole else rows * columns}
        shares = np.diff(_borders(rows, classes)) * columns if whole else [settings["count"]]
        return lengths | {f"codes{index}": int(share) for index, share in enumerate(shares)}

    def unpack(self, packed: Packed) -> Tensor:
        rows, columns = rows_of(packed.shape)
        exponents_R = packed.arrays["steps"].astype(np.int64) + packed.settings["base"]
        within(exponents_R, -OCTAVES * RESOLUTION, OCTAVES * RESOLUTION, "The steps of rows")
        kept_RC = np.ones((rows, columns), bool)
        if packed.arrays["kept"].size:
            within(packed.arrays["kept"], 0, 1, "The marks of removed weights")
            kept_RC = packed.arrays["kept"].reshape(rows, columns).astype(bool)
            refuse_unless(int(kept_RC.sum()) == packed.settings["count"], "Marks and codes differ in number.")
        values_RC = values_of(_codes(packed, kept_RC), kept_RC, packed.settings["memory"])
        steps_R = torch.from_numpy(steps_of(exponents_R) / 2)
        return torch.from_numpy(values_RC.astype(np.float32)).mul_(steps_R[:, None]).view(packed.shape)

    def row_steps(self, packed: Packed) -> Tensor:
        return torch.from_numpy(steps_of(packed.arrays["steps"].astype(np.int64) + packed.settings["base"]) / 2)


def pack(
    codes_RC: Integers,
    exponents_R: np.ndarray[Any, Any],
    kept_RC: np.ndarray[Any, np.dtype[np.bool_]],
    shape: tuple[int, ...],
    memory: int,
) -> Packed:
    """Codes with steps `2^(exponent / 8)` for each row; codes of removed weights are ignored."""
    base = int(np.median(exponents_R)) if exponents_R.size else 0
    arrays = {"steps": (exponents_R - base).astype(np.int32)}
    whole = bool(kept_RC.all())
    class_R = _classes(codes_RC) if whole else np.zeros(len(codes_RC), np.int32)
    classes = int(class_R.max(initial=0)) + 1
    arrays["classes"] = class_R if classes > 1 else class_R[:0]
    arrays["kept"] = kept_RC.reshape(-1).astype(np.int32)[: 0 if whole else None]
    for index in range(classes):
        here = class_R == index
        arrays[f"codes{index}"] = codes_RC[here][kept_RC[here]].astype(np.int32)
    settings = {"base": base, "classes": classes, "count": int(kept_RC.sum()), "memory": memory}
    return Packed("trellis", shape, arrays, settings)


@cache
def transitions(memory: int) -> Integers:
    """`next[s, k mod 2]`, (S, B), of the systematic feedback encoder of Ungerboeck's code with that many bits of state.

    The lowest bit of the state is the parity of the next value; the code's lowest bit is the other bit of its coset.
    """
    first, second = _CHECKS[memory]
    state_S = np.arange(1 << memory)[:, None]
    parity, branch = state_S & 1, np.arange(2)[None, :]
    following = state_S >> 1
    for place in range(1, memory + 1):
        flip = (first >> place & parity) ^ (second >> place & branch)
        following = following ^ (flip << (place - 1))
    return following.astype(np.int32)


def values_of(codes_RC: Integers, kept_RC: np.ndarray[Any, np.dtype[np.bool_]], memory: int) -> Integers:
    """The whole numbers that codes stand for, removed weights 0: all columns side by side, row after row."""
    next_SB = transitions(memory)
    state_C = np.zeros(codes_RC.shape[1], np.int32)
    values_RC = np.zeros_like(codes_RC)
    for values_C, code_C, kept_C in zip(values_RC, codes_RC, kept_RC, strict=True):
        np.copyto(values_C, 2 * code_C + (state_C & 1), where=kept_C)
        state_C = np.where(kept_C, next_SB[state_C, code_C & 1], state_C)
    return values_RC


def _codes(packed: Packed, kept_RC: np.ndarray[Any, np.dtype[np.bool_]]) -> Integers:
    """The codes back in their places."""
    classes = packed.settings["classes"]
    class_R = packed.arrays["classes"] if classes > 1 else np.zeros(len(kept_RC), np.int32)
    sizes = np.diff(_borders(len(kept_RC), classes))
    within(class_R, 0, classes - 1, "The classes of rows")
    refuse_unless(
        np.array_equal(np.bincount(class_R, minlength=classes), sizes), "The classes of rows have unexpected sizes."
    )
    codes_RC = np.zeros(kept_RC.shape, np.int32)
    for index in range(classes):
        codes = packed.arrays[f"codes{index}"]
        within(codes, -LARGEST, LARGEST, "The codes")
        codes_RC[(class_R == index)[:, None] & kept_RC] = codes
    return codes_RC


def _borders(rows: int, classes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.arange(classes + 1) * rows // classes


def _classes(codes_RC: Integers) -> Integers:
    """Each row's class: as many as pay, of equal sizes, in the order of the rows' mean squares."""
    order = np.argsort(np.square(codes_RC.astype(np.float64)).sum(axis=1), kind="stable")
    best, least = np.zeros(len(codes_RC), np.int32), np.inf
    for classes in (1, 2, 4, 8):
        if classes > max(1, len(codes_RC) // 8):
            break
        class_R = np.empty(len(codes_RC), np.int32)
        class_R[order] = np.repeat(np.arange(classes), np.diff(_borders(len(codes_RC), classes)))
        bits = sum(Histogram.of(codes_RC[class_R == index]).entropy() for index in range(classes))
        bits += len(codes_RC) * np.log2(classes) + 64 * classes
        if bits < least:
            best, least = class_R, bits
    return best
