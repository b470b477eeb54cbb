"""The contracts of the artifact's slots: how a tensor becomes integers, and how integers become bytes.

A packing turns one tensor into named vectors of integers and back; a coder turns a vector of integers into
bytes and back. Both halves of either stand in one file, so reading an artifact needs nothing that writes
one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from fairway.core.config import Slot, Technique
from fairway.core.errors import ArtifactError

PACKINGS = Slot("fairway.artifact.packing", "rows")
CODERS = Slot("fairway.artifact.coder", "ans")

Integers = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Packed:
    """One tensor as integers: which packing, its shape, vectors of int32 by name, and a few plain integers."""

    kind: str
    shape: tuple[int, ...]
    arrays: dict[str, Integers]
    settings: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Numbers in the tensor."""
        return prod(self.shape)


class Packing(ABC):
    """Reads back what its module's `pack` wrote."""

    @abstractmethod
    def plan(self, shape: tuple[int, ...], settings: Mapping[str, int]) -> dict[str, int]:
        """Length of every array, in their order, from the shape and settings alone; nothing is allocated.

        Raises `ArtifactError` where they make no sense.
        """

    @abstractmethod
    def unpack(self, packed: Packed) -> Tensor:
        """The tensor in float32; raises `ArtifactError` where the integers make no sense."""

    def row_steps(self, packed: Packed) -> Tensor | None:  # noqa: ARG002
        """What the numbers of each row are whole multiples of, (R); None where rows have no such step."""
        return None


class PackingConfig(Technique):
    """A packing as the artifact names it; it has no settings of its own."""

    def build(self) -> Packing:
        """The packing."""
        raise NotImplementedError


class Coder(ABC):
    """Integers to bytes and back; the bytes hold every table that decoding needs."""

    @abstractmethod
    def estimate(self, values: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> float:
        """Bits that a vector will take, from its distinct integers in rising order and how often each
        occurs.
        """

    @abstractmethod
    def encode(self, symbols: Integers) -> bytes:
        """Bytes of a vector of integers."""

    @abstractmethod
    def decode(self, data: bytes, count: int) -> Integers:
        """The `count` integers that were encoded; raises `ArtifactError` where the bytes do not hold them."""


class CoderConfig(Technique):
    """Settings of a coder."""

    def build(self) -> Coder:
        """The coder."""
        raise NotImplementedError


def packing(kind: str) -> Packing:
    """The packing of one kind."""
    return _technique(PACKINGS, kind, PackingConfig).build()


def coder(kind: str) -> Coder:
    """The coder of one kind, with its default settings."""
    return _technique(CODERS, kind, CoderConfig).build()


def refuse_unless(condition: bool, message: str) -> None:
    """Raises `ArtifactError(message)` where the condition fails."""
    if not condition:
        raise ArtifactError(message)


def exact_settings(settings: Mapping[str, int], bounds: Mapping[str, tuple[int, int]]) -> None:
    """Refuses settings that are not exactly those named by `bounds`, each within its closed interval."""
    if set(settings) != set(bounds):
        raise ArtifactError(f"The settings {sorted(settings)} were found where {sorted(bounds)} belong.")
    for name, (low, high) in bounds.items():
        if not low <= settings[name] <= high:
            raise ArtifactError(f'The setting "{name}" is {settings[name]}; {low} to {high} would work.')


def within(values: np.ndarray[Any, Any], low: int, high: int, what: str) -> None:
    """Refuses integers outside a closed interval."""
    if values.size and not (low <= int(values.min()) and int(values.max()) <= high):
        raise ArtifactError(f"{what} run from {values.min()} to {values.max()}; {low} to {high} would work.")


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's rows and columns: all leading dimensions together, and the last."""
    return (prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def _technique(slot: Slot, kind: str, base: type[Any]) -> Any:
    if kind not in slot.kinds():
        raise ArtifactError(f'This file needs the {slot.package.rpartition(".")[2]} "{kind}", which is unknown here.')
    config = slot.config(kind)
    assert issubclass(config, base)
    return config.model_validate({"kind": kind})
