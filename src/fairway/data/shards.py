"""Token shards on disk: written in one stream, read through memory maps, never trusted.

A shard is a 32-byte header (magic, version, bytes per token, number of tokens, vocabulary) and little-endian
tokens of two bytes, or four above 65,536 ids. Sizes and SHA-256 stand in the folder's manifest. Every
document is its boundary id followed by its tokens.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairway.core import storage
from fairway.core.errors import DataError

_MAGIC = b"FWYSHARD"
_HEADER = struct.Struct("<8sIIQQ")
_VERSION = 1
_CHECKED_AT_ONCE = 1 << 24
SHARD_TOKENS = 1 << 26


class Header(NamedTuple):
    """What a shard says of itself."""

    itemsize: int
    count: int
    vocabulary: int


def write_shard(path: Path, tokens: Iterable[np.ndarray], dtype: np.dtype, vocabulary: int) -> int:
    """Writes one shard from pieces of it, in order; returns the number of tokens."""
    count = 0
    with storage.atomic(path) as file:
        file.write(bytes(_HEADER.size))
        for part in tokens:
            assert part.dtype == dtype
            file.write(np.ascontiguousarray(part).data)
            count += len(part)
        file.seek(0)
        file.write(_HEADER.pack(_MAGIC, _VERSION, dtype.itemsize, count, vocabulary))
    return count


def write_shards(
    folder: Path,
    stem: str,
    tokens: Iterable[np.ndarray],
    dtype: np.dtype,
    vocabulary: int,
    size: int = SHARD_TOKENS,
) -> list[str]:
    """Writes tokens as shards `stem-00000.tokens` and on, each closed once it holds at least `size`; their
    names.
    """
    names: list[str] = []
    source = iter(tokens)
    for first in source:
        names.append(f"{stem}-{len(names):05d}.tokens")
        write_shard(folder / names[-1], _until(size, first, source), dtype, vocabulary)
    return names


def open_shard(path: Path, vocabulary: int) -> np.ndarray:
    """The tokens of a shard as a read-only memory map; raises `DataError` naming the file where anything is
    off.
    """
    header = _header(path)
    if header.vocabulary != vocabulary:
        raise DataError(f"{path} is for a vocabulary of {header.vocabulary} ids; the manifest's has {vocabulary}.")
    if header.count == 0:
        return np.zeros(0, f"<u{header.itemsize}")
    tokens = np.memmap(path, f"<u{header.itemsize}", "r", _HEADER.size, (header.count,))
    for start in range(0, len(tokens), _CHECKED_AT_ONCE):
        part = tokens[start : start + _CHECKED_AT_ONCE]
        if int(part.max()) >= vocabulary:
            place = start + int(np.argmax(part >= vocabulary))
            raise DataError(f"{path} holds token {tokens[place]} at {place}; the vocabulary has {vocabulary} ids.")
    return tokens


class TokenStream:
    """Shards read as one long vector of tokens."""

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self.shards = tuple(shards)
        self._ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, out: np.ndarray) -> None:
        """Fills `out` with the tokens from `start` on, across shards where need be."""
        assert start >= 0
        assert start + len(out) <= len(self)
        shard = int(np.searchsorted(self._ends, start, side="right"))
        filled = 0
        while filled < len(out):
            tokens = self.shards[shard]
            inside = start + filled - (int(self._ends[shard]) - len(tokens))
            part = tokens[inside : inside + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            shard += 1


def _until(size: int, first: np.ndarray, source: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    count = len(first)
    while count < size:
        part = next(source, None)
        if part is None:
            return
        count += len(part)
        yield part


def _header(path: Path) -> Header:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_HEADER.size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(head) < _HEADER.size:
        raise DataError(f"{path} has {size} bytes; a shard's header alone has {_HEADER.size}.")
    magic, version, itemsize, count, vocabulary = _HEADER.unpack(head)
    if magic != _MAGIC or version != _VERSION:
        raise DataError(f"{path} is not a token shard of version {_VERSION}.")
    if itemsize not in (2, 4) or size != _HEADER.size + itemsize * count:
        raise DataError(f"{path} has {size} bytes; its header claims {count} tokens of {itemsize} bytes.")
    return Header(itemsize, count, vocabulary)
