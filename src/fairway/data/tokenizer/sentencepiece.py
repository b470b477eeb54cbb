"""A SentencePiece model made elsewhere (extra `sentencepiece`); many of them lose something of the text.

Ids are the model's own. Bytes that are not UTF-8 become single-byte pieces where the model has them. The
boundary is the model's begin-of-sequence symbol, or one more id where it has none. Such models are never
called lossless: a document that does not come back as it was is counted, and refused unless `accept_loss` is
set.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import final

import numpy as np

from fairway.core.config import Source
from fairway.core.errors import TokenizerError
from fairway.data.parts import Tokenizer, TokenizerConfig
from fairway.data.sentencepiece_model import LARGEST_MODEL, Model, read_model
from fairway.data.utf8 import stretches
from fairway.data.words import PieceTable, native

SOURCE = Source("Kudo and Richardson", 2018, "arXiv:1808.06226")


@final
class SentencePieceTokenizer(Tokenizer):
    """The pieces of a SentencePiece model as exact bytes."""

    kind = "sentencepiece"
    lossless = False

    def __init__(self, model: Model) -> None:
        self._model = model
        self._table = list(model.pieces)
        self.boundary = model.bos if model.bos >= 0 else len(self._table)
        if self.boundary == len(self._table):
            self._table.append(b"")
        self.vocabulary = len(self._table)
        self._pieces = PieceTable(self._table)

    def encode(self, data: bytes) -> np.ndarray:
        ids: list[int] = []
        with native("encode with this SentencePiece model"):
            for part in stretches(data):
                ids += self._of_text(part) if isinstance(part, str) else self._of_byte(part)
        return np.array(ids, self.dtype)

    def _of_text(self, text: str) -> list[int]:
        return self._model.processor.EncodeAsIds(text)

    def _of_byte(self, byte: int) -> list[int]:
        if self._model.byte_ids is not None:
            return [self._model.byte_ids[byte]]
        return [self._model.processor.unk_id()]

    def decode(self, ids: Iterable[int] | np.ndarray) -> bytes:
        data = self._pieces.join(ids)
        return data.removeprefix(b" ") if self._model.prefixed else data

    def piece(self, token: int) -> bytes:
        return self._pieces.join([token])

    def save(self) -> bytes:
        return self._model.data

    @classmethod
    def load(cls, data: bytes) -> "SentencePieceTokenizer":
        return cls(read_model(data))


class Config(TokenizerConfig):
    """Which model is read."""

    made = SentencePieceTokenizer

    path: str
    """The `.model` file."""
    accept_loss: bool = False
    """Go on where documents lose something in encoding; they are counted in the manifest."""

    @property
    def accepts_loss(self) -> bool:
        return self.accept_loss

    def train(self, documents: Iterable[bytes], seed: int) -> SentencePieceTokenizer:  # noqa: ARG002
        try:
            with open(Path(self.path), "rb") as file:
                data = file.read(LARGEST_MODEL + 1)
        except OSError as error:
            raise TokenizerError(f"{self.path} cannot be read: {error.strerror or error}.") from None
        return SentencePieceTokenizer.load(data)
