"""One id for each of the 256 byte values, and one for the boundary.

encode(x)_i = x_i. Nothing is trained, nothing is stored, and every text is a sequence of its own bytes.
"""

from collections.abc import Iterable
from typing import final

import numpy as np

from fairway.core.config import Source
from fairway.core.errors import TokenizerError
from fairway.data.parts import Tokenizer, TokenizerConfig
from fairway.data.words import BOUNDARY, join_pieces

SOURCE = Source("Xue et al.", 2021, "arXiv:2105.13626")


@final
class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes; 256 is the boundary."""

    kind = "byte"
    vocabulary = 257
    boundary = BOUNDARY
    lossless = True
    _TABLE = (*(bytes([byte]) for byte in range(256)), b"")

    def encode(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8).astype(self.dtype)

    def decode(self, ids: Iterable[int] | np.ndarray) -> bytes:
        return join_pieces(list(self._TABLE), ids)

    def piece(self, token: int) -> bytes:
        return self.decode([token])

    def save(self) -> bytes:
        return b""

    @classmethod
    def load(cls, data: bytes) -> "ByteTokenizer":
        if data:
            raise TokenizerError(f"A byte tokenizer has nothing to store, and {len(data)} bytes were given.")
        return cls()


class Config(TokenizerConfig):
    """The byte tokenizer has no settings."""

    made = ByteTokenizer

    def train(self, documents: Iterable[bytes], seed: int) -> ByteTokenizer:  # noqa: ARG002
        return ByteTokenizer()
