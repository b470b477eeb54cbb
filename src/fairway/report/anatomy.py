"""What an artifact is made of: every byte in one group, every tensor with its cost, by part of the model."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fairway.artifact import format as artifact
from fairway.artifact.report import TensorBytes, report
from fairway.core.errors import ArtifactError, ConfigError
from fairway.model.census import part_of_each_parameter
from fairway.model.lm import ModelConfig


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of an artifact."""

    name: str
    part: str
    packing: str
    shape: tuple[int, ...]
    bytes: float
    """Its share of the coded streams."""
    bits_per_weight: float
    entropy: float
    """Bits a number that its integers have by their own frequencies."""
    overhead: float
    """Share of `bytes` beyond that: tables, streams shared with other tensors, and the coder's loss."""
    zeros: float
    """Share of its weights that are exactly zero."""
    deviation: float
    """Root mean square."""


@dataclass(frozen=True)
class Anatomy:
    """An artifact, byte by byte group and tensor by tensor."""

    path: str
    bytes: int
    groups: dict[str, float]
    """Bytes by group; they add up to `bytes`."""
    parameters: int
    bits_per_parameter: float
    """Of the whole file."""
    tensors: tuple[TensorFacts, ...]
    model: dict[str, Any]
    vocabulary: int
    tokenizer: str
    coder: str
    notes: dict[str, Any]


def anatomy(path: Path) -> Anatomy:
    """Reads an artifact and accounts for its bytes; raises `ArtifactError` where it is not one."""
    contents = artifact.read(path)
    account = report(Path(path).read_bytes())
    parts = _parts(contents)
    tensors = tuple(_facts(tensor, parts.get(tensor.name, "other")) for tensor in account.tensors)
    groups: dict[str, float] = {"header, checksum": account.header, "tokenizer": account.tokenizer}
    for tensor in tensors:
        groups[tensor.part] = groups.get(tensor.part, 0.0) + tensor.bytes
    parameters = sum(prod(tensor.shape) for tensor in tensors)
    return Anatomy(
        path=str(path),
        bytes=account.total,
        groups=groups,
        parameters=parameters,
        bits_per_parameter=8 * account.total / max(1, parameters),
        tensors=tensors,
        model=contents.model,
        vocabulary=contents.vocabulary,
        tokenizer=contents.tokenizer_kind,
        coder=contents.coder,
        notes=contents.notes,
    )


def _facts(tensor: TensorBytes, part: str) -> TensorFacts:
    return TensorFacts(
        name=tensor.name,
        part=part,
        packing=tensor.kind,
        shape=tensor.shape,
        bytes=tensor.bytes,
        bits_per_weight=tensor.bits,
        entropy=8 * tensor.entropy_bytes / prod(tensor.shape),
        overhead=max(0.0, 1 - tensor.entropy_bytes / tensor.bytes) if tensor.bytes else 0.0,
        zeros=tensor.zeros,
        deviation=tensor.deviation,
    )


@dataclass(frozen=True)
class Weights:
    """All weights of one part's matrices."""

    count: int
    deviation: float
    zeros: float
    """Share that is exactly zero."""
    spread: np.ndarray
    """Each weight moved evenly within the width of its level: a histogram shows density, not the comb of levels."""


def weights_by_part(path: Path) -> dict[str, Weights]:
    """The weights of each part as they come out of the artifact."""
    contents = artifact.read(path)
    parts = _parts(contents)
    gathered: dict[str, list[np.ndarray]] = {}
    for name, tensor in artifact.restore(contents).items():
        if tensor.dim() > 1:
            gathered.setdefault(parts.get(name, "other"), []).append(
                tensor.float().reshape(-1, tensor.shape[-1]).numpy()
            )
    found = {}
    for part, matrices in gathered.items():
        exact = np.concatenate([matrix.ravel() for matrix in matrices])
        spread = np.concatenate([_spread(matrix).ravel() for matrix in matrices])
        found[part] = Weights(exact.size, float(exact.std()), float((exact == 0).mean()), spread)
    return found


def _spread(matrix: np.ndarray) -> np.ndarray:
    """A row's level is as wide as its smallest weight; the places within it follow the golden ratio."""
    size = np.abs(matrix)
    width = np.where(size > 0, size, np.inf).min(axis=1, keepdims=True)
    width[~np.isfinite(width)] = 0.0
    places = (np.arange(matrix.size, dtype=np.float64) * 0.6180339887498949) % 1.0 - 0.5
    return matrix + width * places.reshape(matrix.shape)


def _parts(contents: artifact.Contents) -> dict[str, str]:
    try:
        return part_of_each_parameter(ModelConfig.read(contents.model, origin="model").skeleton(contents.vocabulary))
    except ConfigError as error:
        raise ArtifactError(f"The artifact's model cannot be built: {error}") from None
