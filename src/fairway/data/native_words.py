"""Byte-pair encoding, training and joining by the native kernels, in parallel over the texts.

`words.py` and `tokenizer/bpe.py` hold the definitions; the results are the same to the last id. A long text is cut
into parts behind letters that no letter follows, which is the end of a word wherever the words before it ended.
"""

import ctypes
import re
import threading
import weakref
from collections.abc import Iterable, Sequence
from ctypes import c_long, c_void_p
from typing import Any, NamedTuple

import numpy as np
import torch

from fairway.core.native import kernel, level

_PART = 1 << 18
_AT_ONCE = 16_000_000


class Words(NamedTuple):
    """How a text is cut into words: the kind of each byte, the most digits in one, whether a blank leads."""

    kinds: bytes
    """0 letters, 1 marks, 2 digits, 3 blanks, 4 bytes that stand alone."""
    digits: int
    prefix: bool
    letter_end: re.Pattern[bytes]
    """Matches a letter that no letter follows."""


def usable() -> bool:
    """Whether the kernels are there and switched on."""
    return level() is not None


class Encoder:
    """Merges at work on texts; keeps the words that it has met in bounded memory."""

    def __init__(
        self, words: Words, merges: Sequence[tuple[int, int]], made: Sequence[int], dtype: np.dtype[Any]
    ) -> None:
        """`dtype`: of the ids, unsigned, of two or four bytes."""
        self._words, self._dtype = words, dtype
        self._lanes = max(1, torch.get_num_threads())
        self._lock = threading.Lock()
        left, right = np.array(merges, np.uint32).reshape(-1, 2).T.copy()
        ids = np.array(made, np.uint32)
        self._handle = c_void_p()
        kernel("bpe_open")(
            ctypes.byref(self._handle), words.kinds, c_long(words.digits), c_long(words.prefix), _address(left),
            _address(right), _address(ids), c_long(len(ids)), c_long(dtype.itemsize), c_long(self._lanes),
        )  # fmt: skip
        weakref.finalize(self, kernel("bpe_close"), self._handle)

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """The ids of each text."""
        found: list[np.ndarray] = []
        for group in _groups(texts):
            found += self._encode(group)
        return found

    def _encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        parts, owners = _parts(texts, self._words)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(parts.sizes)])
        counts = np.zeros(len(parts.sizes), np.int64)
        out = np.empty(int(starts[-1]), self._dtype)
        with self._lock:
            kernel("bpe_encode")(
                self._handle, _address(parts.addresses), _address(parts.sizes), _address(starts), _address(counts),
                c_long(len(counts)), _address(out), c_long(self._lanes),
            )  # fmt: skip
        pieces = [out[start : start + count] for start, count in zip(starts.tolist(), counts.tolist(), strict=False)]
        # A view costs no copy, and what lies behind its ids in `out` was never touched, so it takes no memory.
        return [pieces[first] if last - first == 1 else np.concatenate(pieces[first:last]) for first, last in owners]


def learn(words: Words, documents: Iterable[bytes], vocabulary: int) -> list[tuple[int, int]]:
    """The merges of the documents, read once, a bounded number of them held at a time."""
    lanes = max(1, torch.get_num_threads())
    handle = c_void_p()
    kernel("words_open")(ctypes.byref(handle), words.kinds, c_long(words.digits), c_long(words.prefix), c_long(lanes))
    try:
        for group in _groups(documents):
            parts, _ = _parts(group, words)
            count = c_long(len(parts.sizes))
            kernel("words_add")(handle, _address(parts.addresses), _address(parts.sizes), count, c_long(lanes))
        learned = np.zeros(1, np.int64)
        kernel("bpe_learn")(handle, c_long(vocabulary), _address(learned))
        merges = np.zeros((2, int(learned[0])), np.uint32)
        kernel("bpe_learned")(handle, _address(merges[0]), _address(merges[1]))
    finally:
        kernel("words_close")(handle)
    return list(zip(merges[0].tolist(), merges[1].tolist(), strict=True))


class Joiner:
    """The bytes of many ids; each id's bytes stand in a table."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self.size = len(table)
        self._pieces = b"".join(table) + bytes(16)
        self._lengths = np.array([len(piece) for piece in table], np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._lengths)])

    def join(self, ids: np.ndarray) -> bytes:
        """The pieces of ids of two or four bytes that are all below the size of the table."""
        ids = np.ascontiguousarray(ids)
        size = int(self._lengths[ids].sum())
        out = np.empty(size, np.uint8)
        kernel("pieces_join")(
            _address(ids), c_long(ids.dtype.itemsize), c_long(len(ids)), self._pieces, _address(self._starts),
            _address(out), c_long(size),
        )  # fmt: skip
        return out.tobytes()


class _Parts(NamedTuple):
    addresses: np.ndarray
    sizes: np.ndarray


def _groups(texts: Iterable[bytes]) -> Iterable[list[bytes]]:
    group: list[bytes] = []
    held = 0
    for text in texts:
        group.append(text)
        held += len(text)
        if held >= _AT_ONCE:
            yield group
            group, held = [], 0
    if group:
        yield group


def _parts(texts: Sequence[bytes], words: Words) -> tuple[_Parts, list[tuple[int, int]]]:
    """Where each part lies, and which parts belong to each text. The texts must outlive the addresses."""
    addresses: list[int] = []
    sizes: list[int] = []
    owners: list[tuple[int, int]] = []
    where = np.frombuffer(bytearray((ctypes.c_char_p * len(texts))(*texts)), np.uint64).tolist()
    for text, address in zip(texts, where, strict=True):
        first, start = len(sizes), 0
        while start < len(text) or len(sizes) == first:
            end = _end(text, start, words)
            addresses.append(address + start)
            sizes.append(end - start)
            start = end
        owners.append((first, len(sizes)))
    return _Parts(np.array(addresses, np.uint64), np.array(sizes, np.int64)), owners


def _end(text: bytes, start: int, words: Words) -> int:
    if len(text) - start <= _PART:
        return len(text)
    found = words.letter_end.search(text, start + _PART)
    return found.end() if found else len(text)


def _address(array: np.ndarray) -> c_void_p:
    return c_void_p(array.ctypes.data)
