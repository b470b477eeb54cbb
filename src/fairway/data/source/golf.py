"""Token shards of the public challenge, turned back into text by their SentencePiece model.

A shard is 256 little-endian int32 (20240520, version 1, number of tokens), then uint16 tokens. Every document
begins with id 1, also where it goes on in the next shard. Pieces become bytes exactly: single-byte pieces one
byte each, the space mark a blank. What comes out is the text as that model normalised it.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from fairway.core.config import Source
from fairway.core.errors import DataError
from fairway.data.files import Paths, find_files
from fairway.data.parts import Document, SourceConfig
from fairway.data.sentencepiece_model import Model, read_model

SOURCE = Source("OpenAI", 2026, "https://github.com/openai/parameter-golf")

_MAGIC = 20240520
_HEADER_BYTES = 1024
_BOS = 1


class Config(SourceConfig):
    """Where the shards and the SentencePiece model lie."""

    path: Paths
    model: str
    """The SentencePiece `.model` file that the shards were made with."""

    def documents(self) -> Iterator[Document]:
        try:
            model = read_model(Path(self.model).read_bytes())
        except OSError as error:
            raise DataError(f"{self.model} cannot be read: {error.strerror or error}.") from None
        open_tokens: list[np.ndarray] = []
        number = 0
        for path in find_files(self.path, (".bin",)):
            tokens = _shard(path, len(model.pieces))
            starts = np.flatnonzero(tokens == _BOS).tolist()
            bounds = [0, *starts, len(tokens)]
            for place, (start, end) in enumerate(pairwise(bounds)):
                if place > 0:
                    if open_tokens:
                        yield _document(number, open_tokens, model)
                        number += 1
                    open_tokens = []
                if end > start:
                    open_tokens.append(np.array(tokens[start:end]))
        if open_tokens:
            yield _document(number, open_tokens, model)


def _document(number: int, parts: list[np.ndarray], model: Model) -> Document:
    ids = np.concatenate(parts).tolist()
    return Document(f"golf:{number}", b"".join(map(model.pieces.__getitem__, ids)))


def _shard(path: Path, vocabulary: int) -> np.ndarray:
    try:
        size = path.stat().st_size
        header = np.fromfile(path, "<i4", 256)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(header) < 256 or header[0] != _MAGIC or header[1] != 1:
        raise DataError(f"{path} is not a shard of the challenge: it does not begin with {_MAGIC} and version 1.")
    count = int(header[2])
    if count < 0 or size != _HEADER_BYTES + 2 * count:
        raise DataError(f"{path} has {size} bytes; {count} tokens, as its header says, would make {1024 + 2 * count}.")
    if count == 0:
        return np.zeros(0, np.uint16)
    tokens = np.memmap(path, "<u2", "r", _HEADER_BYTES, (count,))
    if int(tokens.max()) >= vocabulary:
        raise DataError(f"{path} holds token {int(tokens.max())}; the model has only {vocabulary} pieces.")
    return tokens
