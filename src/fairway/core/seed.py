"""Randomness as a pure function: the same names give the same numbers on any machine and at any time.

Nothing draws from a global generator. Every use names its stream (`generator(seed, "dropout", step)`), so
there is no generator state to save, restore or forget.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one named purpose, by BLAKE2b over the seed and the names."""
    text = "/".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded for one named purpose."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator (Philox) seeded for one named purpose."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))


_ROUNDS = 8
"""With four, neighbours stay neighbours a quarter more often than in a fair shuffle."""


@dataclass(frozen=True)
class Permutation:
    """A keyed permutation of `range(size)` evaluated pointwise: no table, no state.

    An eight-round Feistel network over the next even number of bits, walked until it lands inside the range
    (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """

    size: int
    key: int

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Images of an array of indices in [0, size), as int64 of the same shape."""
        assert self.size > 0
        half = max(1, (int(self.size - 1).bit_length() + 1) // 2)
        value = np.asarray(index, dtype=np.uint64).copy()
        outside = np.ones(value.shape, dtype=bool)
        while outside.any():
            value[outside] = self._rounds(value[outside], half)
            outside = value >= np.uint64(self.size)
        return value.astype(np.int64)

    def _rounds(self, value: np.ndarray, half: int) -> np.ndarray:
        mask = np.uint64((1 << half) - 1)
        left, right = value >> np.uint64(half), value & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(right, derive(self.key, turn)) & mask)
        return (left << np.uint64(half)) | right


def _mix(value: np.ndarray, key: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        value = (value + np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        return value ^ (value >> np.uint64(32))
