"""Where the bytes of an artifact went: by section, and by tensor."""

from dataclasses import dataclass
from math import prod

import numpy as np

from fairway.artifact.format import read_bytes, read_plan, unpack
from fairway.artifact.table import Histogram, total


@dataclass(frozen=True)
class TensorBytes:
    """One tensor's part of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes: float
    """Its share of the coded streams, by the length of its symbols under each stream's own frequencies."""
    entropy_bytes: float
    """What its integers would take at their own empirical entropy, without any table."""
    zeros: float
    """Share of numbers that are exactly zero."""
    deviation: float
    """Root mean square."""

    @property
    def bits(self) -> float:
        """Bits a number."""
        return 8 * self.bytes / prod(self.shape)


@dataclass(frozen=True)
class Report:
    """Every byte of the file in exactly one group."""

    total: int
    header: int
    """Magic, version, header and checksum."""
    tokenizer: int
    tensors: tuple[TensorBytes, ...]

    @property
    def entropy_bytes(self) -> float:
        """The integers of all tensors at their own entropies, without tables."""
        return sum(tensor.entropy_bytes for tensor in self.tensors)


def report(data: bytes) -> Report:
    """Where the bytes of an artifact went; raises `ArtifactError` for bytes that are none."""
    plan, _ = read_plan(data)
    contents = read_bytes(data)
    entropies = {
        (name, key): Histogram.of(array)
        for name, packed in contents.tensors.items()
        for key, array in packed.arrays.items()
    }
    shares: dict[str, float] = dict.fromkeys(contents.tensors, 0.0)
    for stream, length in enumerate(plan.streams):
        members = [
            (entry.name, key)
            for entry in plan.entries
            for key, place in zip(entry.counts, entry.streams, strict=True)
            if place == stream
        ]
        bits = _cross_entropies([entropies[member] for member in members])
        for (name, _), share in zip(members, bits / bits.sum() if bits.sum() else bits + 1 / len(bits), strict=True):
            shares[name] += length * float(share)
    tensors = []
    for name, packed in contents.tensors.items():
        values = unpack(name, packed)
        own = sum(entropies[name, key].entropy() for key in packed.arrays) / 8
        zeros = float((values == 0).float().mean())
        deviation = float(values.double().square().mean().sqrt())
        tensors.append(TensorBytes(name, packed.kind, packed.shape, shares[name], own, zeros, deviation))
    streams = sum(plan.streams)
    header = len(data) - plan.tokenizer_bytes - streams
    return Report(len(data), header, plan.tokenizer_bytes, tuple(tensors))


def _cross_entropies(histograms: list[Histogram]) -> np.ndarray:
    """Bits of each vector under the frequencies of all together."""
    whole = total(histograms)
    logarithms = -np.log2(whole.counts / max(1, whole.counts.sum()))
    return np.array([own.counts @ logarithms[np.searchsorted(whole.values, own.values)] for own in histograms])
