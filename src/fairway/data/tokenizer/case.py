"""Lossless case: capitals become a mark and a small letter, and another tokenizer is trained on what results.

`Hello` is written as CAPITAL hello, `HELLO` as UPPER hello, and a blank before the word goes behind the mark,
so that ` Hello`, ` hello` and ` HELLO` share their pieces. The marks are three bytes that no UTF-8 text
holds; where they do occur, each is written behind ESCAPE. CAPITAL acts on the next letter, UPPER on all small
letters up to anything else. The change is undone exactly for any bytes, and bytes are counted on the original
text.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast, final

import numpy as np
from pydantic import Field

from fairway.core.config import Source
from fairway.core.errors import TokenizerError
from fairway.data.parts import TOKENIZERS, Tokenizer, TokenizerConfig, load_tokenizer
from fairway.data.words import FIRST_PIECE, LARGEST_VOCABULARY, Digits, Spaces

SOURCE = Source("OpenAI", 2026, "https://github.com/openai/parameter-golf/pull/1729")

CAPITAL, UPPER, ESCAPE = b"\xff", b"\xfe", b"\xfd"

_TO_WRITE = re.compile(rb"( ?)([A-Z]{2,}(?=[A-Z][a-z])|[A-Z]{2,}(?![A-Za-z])|[A-Z])|[\xfd-\xff]")
_MARKS = re.compile(rb"\xfd([\x00-\xff]?)|[\xfe\xff]")
_TO_READ = re.compile(rb"\xfd([\x00-\xff]?)|\xfe( ?)([a-z]*)|\xff( ?[a-z]?)")

Inner = Literal["bpe", "unigram", "byte"]
_INNER: tuple[Inner, ...] = ("bpe", "unigram", "byte")


def lowered(data: bytes) -> bytes:
    """The text with its capitals written as marks; `restored` undoes it for any bytes."""
    return _TO_WRITE.sub(_mark, data)


def restored(data: bytes) -> bytes:
    """The text that marks stand for; marks that govern nothing are dropped, so any bytes have a reading."""
    return _TO_READ.sub(_unmark, data)


def _mark(match: re.Match[bytes]) -> bytes:
    blank, capitals = match[1], match[2]
    if capitals is None:
        return ESCAPE + match[0]
    return (CAPITAL if len(capitals) == 1 else UPPER) + blank + capitals.lower()


def _unmark(match: re.Match[bytes]) -> bytes:
    escaped, blank, letters, capital = match.groups()
    if escaped is not None:
        return escaped
    return capital.upper() if capital is not None else blank + letters.upper()


@final
class CaseTokenizer(Tokenizer):
    """Another lossless tokenizer behind the case marks."""

    kind = "case"
    lossless = True

    def __init__(self, inner: Tokenizer) -> None:
        assert inner.lossless
        self.inner = inner
        self.vocabulary, self.boundary = inner.vocabulary, inner.boundary

    def encode(self, data: bytes) -> np.ndarray:
        return self.inner.encode(lowered(data))

    def encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return self.inner.encode_all([lowered(text) for text in texts])

    def encode_for_training(self, data: bytes, generator: np.random.Generator) -> np.ndarray:
        return self.inner.encode_for_training(lowered(data), generator)

    @property
    def random_training(self) -> bool:
        return self.inner.random_training

    def decode(self, ids: Iterable[int] | np.ndarray) -> bytes:
        return restored(self.inner.decode(ids))

    def piece(self, token: int) -> bytes:
        """The piece as written, marks included: what it becomes in a text depends on its neighbours."""
        return self.inner.piece(token)

    def text_bytes(self, pieces: bytes) -> int:
        return len(_MARKS.sub(rb"\1", pieces))

    def save(self) -> bytes:
        return bytes([_INNER.index(cast(Inner, self.inner.kind))]) + self.inner.save()

    @classmethod
    def load(cls, data: bytes) -> "CaseTokenizer":
        if not data or data[0] >= len(_INNER):
            raise TokenizerError("The saved case tokenizer does not say what it wraps.")
        return cls(load_tokenizer(_INNER[data[0]], data[1:]))


class Config(TokenizerConfig):
    """Which tokenizer is trained behind the marks, and its main settings."""

    made = CaseTokenizer

    inner: Inner = "bpe"
    vocabulary: int = Field(default=1024, ge=FIRST_PIECE, le=LARGEST_VOCABULARY)
    """As for the tokenizer inside; `byte` has no use for it."""
    digits: Digits = "single"
    spaces: Spaces = "prefix"

    def train(self, documents: Iterable[bytes], seed: int) -> CaseTokenizer:
        config = TOKENIZERS.config(self.inner)
        mine: dict[str, Any] = {"vocabulary": self.vocabulary, "digits": self.digits, "spaces": self.spaces}
        inner = config.model_validate({name: mine[name] for name in mine if name in config.model_fields})
        assert isinstance(inner, TokenizerConfig)
        return CaseTokenizer(inner.train(map(lowered, documents), seed))
