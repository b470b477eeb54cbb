"""The contracts of the data slots: where documents come from, and how their bytes become token ids.

Everything here deals in raw bytes. A tokenizer never sees a document's name, and a source never sees a token.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, final

import numpy as np

from fairway.core.config import Slot, Technique
from fairway.core.errors import FairwayError, TokenizerError

SOURCES = Slot("fairway.data.source", "stdlib")
TOKENIZERS = Slot("fairway.data.tokenizer", "bpe")


class Document(NamedTuple):
    """One text as it was found: a name for messages, and its raw bytes, in no particular encoding."""

    name: str
    data: bytes


class SourceConfig(Technique):
    """Base of every source of documents."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Every document, in an order that depends on nothing but the text; holds one at a time in memory.

        Raises `DataError` naming the file, and the line where there is one, for whatever cannot be read.
        """


class Tokenizer(ABC):
    """Bytes to token ids and back. Ids run from 0 to `vocabulary - 1`.

    `boundary` is the id put before every document: it carries loss but no bytes, and `encode` never gives it.
    Where `lossless` holds, `decode(encode(data)) == data` for all bytes whatever.
    """

    kind: ClassVar[str]
    vocabulary: int
    boundary: int
    lossless: bool

    @property
    @final
    def dtype(self) -> np.dtype[Any]:
        """Smallest little-endian unsigned type that holds every id: two bytes, or four above 65,536 ids."""
        return np.dtype("<u2" if self.vocabulary <= 1 << 16 else "<u4")

    @abstractmethod
    def encode(self, data: bytes) -> np.ndarray:
        """Ids of one text as a vector of `dtype`, without the boundary."""

    def encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of many texts, in their order; equal to `encode` of each."""
        return [self.encode(text) for text in texts]

    def encode_for_training(self, data: bytes, generator: np.random.Generator) -> np.ndarray:  # noqa: ARG002
        """Ids of one training text; differs from `encode` where the tokenizer has a random segmentation."""
        return self.encode(data)

    @property
    def random_training(self) -> bool:
        """Whether `encode_for_training` draws from its generator."""
        return False

    @abstractmethod
    def decode(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """Bytes of any sequence of ids; boundaries give none. Raises `TokenizerError` for an id outside the
        range.
        """

    @abstractmethod
    def piece(self, token: int) -> bytes:
        """What one id stands for, for display; empty for the boundary."""

    def text_bytes(self, pieces: bytes) -> int:
        """Bytes of the text that pieces in a row stand for: all of them, unless marks stand among them."""
        return len(pieces)

    @abstractmethod
    def save(self) -> bytes:
        """Everything `load` needs; two tokenizers that encode alike and were made alike save alike."""

    @classmethod
    @abstractmethod
    def load(cls, data: bytes) -> "Tokenizer":
        """The tokenizer that `save` wrote; raises `TokenizerError` for any other bytes, within bounded
        memory.
        """


class TokenizerConfig(Technique):
    """Base of every tokenizer's settings. `made` is the class that `train` gives."""

    made: ClassVar[type[Tokenizer]]

    @abstractmethod
    def train(self, documents: Iterable[bytes], seed: int) -> Tokenizer:
        """A tokenizer fitted to the documents, read once; the same input gives the same tokenizer."""

    @property
    def accepts_loss(self) -> bool:
        """Whether texts that do not survive encoding and decoding are let through, and counted."""
        return False


def load_tokenizer(kind: str, data: bytes) -> Tokenizer:
    """The tokenizer of a kind from what its `save` gave. The bytes may come from anyone: every fault in them,
    a crash inside a native library included, ends in one `TokenizerError`."""
    try:
        config = TOKENIZERS.config(kind)
    except ValueError as error:
        raise TokenizerError(f"There is no tokenizer of that kind: {error}") from None
    assert issubclass(config, TokenizerConfig)
    try:
        return config.made.load(data)
    except FairwayError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise TokenizerError(f"The saved {kind} tokenizer is unreadable: {type(error).__name__}: {error}") from None
