"""The artifact: one file that holds everything needed to predict text.

Layout: 4 magic bytes, 1 byte version, 4 bytes header length (little-endian), the header (see `header.py`),
the compressed tokenizer, the coded streams one after another, and the SHA-256 of all before it. Reading
checks the digest first, then turns the header into a plan, checks the plan against the file, and only then
allocates. Nothing in it is executed.
"""

import hashlib
import lzma
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fairway.artifact.header import LARGEST_TOKENIZER, Entry, Plan, deflate, parse
from fairway.artifact.parts import Integers, Packed, coder, packing, refuse_unless
from fairway.artifact.streams import grouped
from fairway.artifact.table import Histogram, total
from fairway.core.errors import ArtifactError
from fairway.core.storage import atomic

MAGIC = b"\x93FWY"
VERSION = 1
LARGEST_FILE = 1 << 32
_DIGEST = hashlib.sha256().digest_size
_FRAME = len(MAGIC) + 1 + 4
Member = tuple[str, str]
"""An array, by its tensor's name and its own."""
_LZMA = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20, "lc": 3, "lp": 0, "pb": 0}]


@dataclass(frozen=True, eq=False)
class Contents:
    """What an artifact holds."""

    model: dict[str, Any]
    """`ModelConfig.plain()`."""
    vocabulary: int
    tokenizer_kind: str
    tokenizer: bytes
    tensors: dict[str, Packed]
    notes: dict[str, Any] = field(default_factory=dict)
    """Small facts: the recipe's fingerprint, Fairway's version, seconds of training, the scoring window."""
    coder: str = "ans"


@dataclass(frozen=True)
class Stream:
    """A coded stream: the arrays in it, by tensor and name, and its bytes."""

    members: tuple[Member, ...]
    data: bytes


def write(path: Path, contents: Contents) -> int:
    """Writes an artifact and returns the size of the file in bytes."""
    return write_bytes(path, encode(contents))


def write_bytes(path: Path, data: bytes) -> int:
    """Writes an encoded artifact and returns its size."""
    with atomic(path) as file:
        file.write(data)
    return len(data)


def encode(contents: Contents) -> bytes:
    """The bytes of the file."""
    method, tokenizer = _squeezed(contents.tokenizer)
    streams = coded_streams(contents)
    where = {member: index for index, stream in enumerate(streams) for member in stream.members}
    lengths = tuple(len(stream.data) for stream in streams)
    header = deflate(_plan(contents, method, len(tokenizer), where, lengths))
    parts = [MAGIC, bytes([VERSION]), len(header).to_bytes(4, "little"), header, tokenizer]
    data = b"".join([*parts, *(stream.data for stream in streams)])
    return data + hashlib.sha256(data).digest()


def estimated_bytes(contents: Contents) -> int:
    """Size of the file from the frequencies of its integers, without coding anything."""
    groups = _groups(contents)
    writer = coder(contents.coder)
    bits = sum(writer.estimate(histogram.values, histogram.counts) for _, histogram in groups)
    _, tokenizer = _squeezed(contents.tokenizer)
    where = {member: index for index, (members, _) in enumerate(groups) for member in members}
    header = len(deflate(_plan(contents, "lzma", len(tokenizer), where, (100_000,) * len(groups))))
    return round(bits / 8) + header + len(tokenizer) + _FRAME + _DIGEST


def coded_streams(contents: Contents) -> list[Stream]:
    """Every array of every tensor in a coded stream."""
    writer = coder(contents.coder)
    streams = []
    for members, _ in _groups(contents):
        arrays = [contents.tensors[name].arrays[key] for name, key in members]
        streams.append(Stream(members, writer.encode(np.concatenate(arrays))))
    return streams


def _groups(contents: Contents) -> list[tuple[tuple[Member, ...], Histogram]]:
    """The arrays that share a stream, with the histogram of all of them; only arrays of one name and
    packing do.
    """
    families: dict[str, list[Member]] = {}
    for name, packed in contents.tensors.items():
        for key in packed.arrays:
            families.setdefault(f"{packed.kind} {key}", []).append((name, key))
    groups: list[tuple[tuple[Member, ...], Histogram]] = []
    for members in families.values():
        histograms = [Histogram.of(contents.tensors[name].arrays[key]) for name, key in members]
        groups += [
            (tuple(members[index] for index in group), total([histograms[index] for index in group]))
            for group in grouped(histograms)
        ]
    return groups


def read(path: Path) -> Contents:
    """The contents of an artifact file; raises `ArtifactError` naming the file and what is wrong with it."""
    try:
        size = Path(path).stat().st_size
        refuse_unless(size <= LARGEST_FILE, f"It has {size:,} bytes; at most {LARGEST_FILE:,} may be.")
        data = Path(path).read_bytes()
        return read_bytes(data)
    except FileNotFoundError:
        raise ArtifactError(f"There is no artifact {path}.") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ArtifactError as error:
        raise ArtifactError(f"{path} is not a usable artifact. {error}") from None


def read_bytes(data: bytes) -> Contents:
    """The contents of an artifact's bytes; raises `ArtifactError` naming what is wrong."""
    plan, start = read_plan(data)
    stop = start + plan.tokenizer_bytes
    tokenizer = _unsqueezed(plan.tokenizer_method, data[start:stop], plan.tokenizer_decoded)
    arrays: dict[int, Iterator[Integers]] = {}
    reader = coder(plan.coder)
    for index, (length, count) in enumerate(zip(plan.streams, plan.stream_counts(), strict=True)):
        symbols = reader.decode(data[stop : stop + length], count)
        arrays[index] = _pieces(symbols, plan, index)
        stop += length
    tensors = {}
    for entry in plan.entries:
        parts = {key: next(arrays[stream]) for key, stream in zip(entry.counts, entry.streams, strict=True)}
        tensors[entry.name] = Packed(entry.kind, entry.shape, parts, entry.settings)
    return Contents(plan.model, plan.vocabulary, plan.tokenizer_kind, tokenizer, tensors, plan.notes, plan.coder)


def read_plan(data: bytes) -> tuple[Plan, int]:
    """The checked plan of an artifact's bytes, and where its sections start; decodes no section."""
    refuse_unless(data[: len(MAGIC)] == MAGIC, "It does not begin like an artifact of Fairway.")
    refuse_unless(len(data) >= _FRAME + _DIGEST, f"It is cut short: it has {len(data)} bytes.")
    refuse_unless(
        hashlib.sha256(memoryview(data)[:-_DIGEST]).digest() == data[-_DIGEST:],
        "It is damaged or cut short: its SHA-256 checksum does not match its content.",
    )
    version = data[len(MAGIC)]
    refuse_unless(version == VERSION, f"It has format version {version}; this Fairway reads version {VERSION}.")
    length = int.from_bytes(data[_FRAME - 4 : _FRAME], "little")
    body = len(data) - _FRAME - _DIGEST - length
    refuse_unless(body >= 0, f"Its header claims {length:,} bytes; the file has {len(data):,}.")
    return parse(data[_FRAME : _FRAME + length], body, len(data)), _FRAME + length


def restore(contents: Contents) -> dict[str, Tensor]:
    """Every tensor in float32, by name; raises `ArtifactError` where one cannot be unpacked."""
    return {name: unpack(name, packed) for name, packed in contents.tensors.items()}


def unpack(name: str, packed: Packed) -> Tensor:
    """One tensor in float32; the error names it."""
    try:
        tensor = packing(packed.kind).unpack(packed)
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None
    assert tuple(tensor.shape) == packed.shape
    assert tensor.numel() == prod(packed.shape)
    return tensor


def _plan(
    contents: Contents, method: str, tokenizer: int, where: Mapping[Member, int], lengths: tuple[int, ...]
) -> Plan:
    return Plan(
        coder=contents.coder,
        model=contents.model,
        notes=contents.notes,
        vocabulary=contents.vocabulary,
        tokenizer_kind=contents.tokenizer_kind,
        tokenizer_method=method,
        tokenizer_bytes=tokenizer,
        tokenizer_decoded=len(contents.tokenizer),
        streams=lengths,
        entries=tuple(_entry(name, packed, where) for name, packed in contents.tensors.items()),
    )


def _entry(name: str, packed: Packed, where: Mapping[Member, int]) -> Entry:
    counts = packing(packed.kind).plan(packed.shape, packed.settings)
    assert counts == {key: array.size for key, array in packed.arrays.items()}, (name, counts)
    streams = tuple(where[name, key] for key in packed.arrays)
    return Entry(name, packed.kind, packed.shape, packed.settings, streams, counts)


def _pieces(symbols: Integers, plan: Plan, stream: int) -> Iterator[Integers]:
    start = 0
    for entry in plan.entries:
        for place, count in zip(entry.streams, entry.counts.values(), strict=True):
            if place == stream:
                yield symbols[start : start + count]
                start += count


def _squeezed(data: bytes) -> tuple[str, bytes]:
    refuse_unless(len(data) <= LARGEST_TOKENIZER, f"The tokenizer has {len(data):,} bytes; 16 MiB is the most.")
    forms = {
        "stored": data,
        "zlib": zlib.compress(data, 9, -15),
        "lzma": lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA),
    }
    return min(forms.items(), key=lambda form: len(form[1]))


def _unsqueezed(method: str, data: bytes, size: int) -> bytes:
    try:
        if method == "stored":
            found, whole = data, True
        elif method == "zlib":
            inflater = zlib.decompressobj(-15)
            found = inflater.decompress(data, size + 1)
            whole = inflater.eof and not inflater.unused_data
        elif method == "lzma":
            decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
            found = decoder.decompress(data, size + 1)
            whole = decoder.eof and not decoder.unused_data
        else:
            raise ArtifactError(f'The tokenizer is compressed by "{method}", which is unknown here.')
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise ArtifactError(f"The tokenizer cannot be decompressed: {error}.") from None
    refuse_unless(
        whole and len(found) == size,
        f"The tokenizer does not have the {size} bytes that the header declares.",
    )
    return found
