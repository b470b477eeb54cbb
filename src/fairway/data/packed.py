"""Small whole numbers in few bits: each takes as many bits as the largest value it could have had."""

from collections.abc import Sequence

import numpy as np

from fairway.core.errors import TokenizerError


def pack_numbers(numbers: Sequence[int], limits: Sequence[int]) -> bytes:
    """Numbers as a bit string, least significant bit first; each number lies in [0, its limit)."""
    value = np.asarray(numbers, np.int64)
    limit = np.asarray(limits, np.int64)
    assert value.shape == limit.shape
    assert ((value >= 0) & (value < limit)).all()
    owner, place = _layout(limit)
    return np.packbits((value[owner] >> place).astype(np.uint8) & 1, bitorder="little").tobytes()


def unpack_numbers(data: bytes, limits: Sequence[int]) -> list[int]:
    """The numbers that `pack_numbers` wrote; raises `TokenizerError` where they do not fit."""
    limit = np.asarray(limits, np.int64)
    owner, place = _layout(limit)
    if len(data) != (len(owner) + 7) // 8:
        raise TokenizerError(f"{(len(owner) + 7) // 8} bytes of packed numbers were expected, not {len(data)}.")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits[len(owner) :].any():
        raise TokenizerError("There are stray bits behind the packed numbers.")
    value = np.zeros(len(limit), np.int64)
    np.add.at(value, owner, bits[: len(owner)].astype(np.int64) << place)
    if (value >= limit).any():
        first = int(np.flatnonzero(value >= limit)[0])
        raise TokenizerError(f"Packed number {first} is {value[first]}; it must be below {limit[first]}.")
    return value.tolist()


def _layout(limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every bit, the number it belongs to and its place in it."""
    width = np.array([int(size - 1).bit_length() for size in limit.tolist()], np.int64)
    owner = np.repeat(np.arange(len(limit)), width)
    first = np.repeat(np.cumsum(width) - width, width)
    return owner, np.arange(len(owner)) - first
