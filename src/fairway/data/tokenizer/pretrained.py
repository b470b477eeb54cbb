"""A `tokenizer.json` made elsewhere; byte-level ones are lossless for any bytes.

The `tokenizers` library cuts the text as the file says. Text that spells a special token is encoded like any
other text. Bytes that are not UTF-8 become the pieces of single bytes where the file has all 256. Documents that
a file of another sort loses something of are counted, and refused unless `accept_loss` is set. The boundary is a
special token of the file (`<|document|>`, `<|endoftext|>`, `<s>`, ...), or one more id where it has none of them.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

import numpy as np
from tokenizers import Tokenizer as Native

from fairway.core.config import Source
from fairway.core.errors import TokenizerError
from fairway.data.byte_level_json import DOCUMENT_MARK, spelled, unspelled
from fairway.data.parts import Tokenizer, TokenizerConfig
from fairway.data.utf8 import stretches
from fairway.data.words import LARGEST_VOCABULARY, PieceTable, native

SOURCE = Source("Moi and Patry", 2023, "https://github.com/huggingface/tokenizers")

_LARGEST_FILE = 64_000_000
_BOUNDARIES = (DOCUMENT_MARK, "<|endoftext|>", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "</s>", "<eos>")
_SPACE_MARK = "\u2581"


@final
class PretrainedTokenizer(Tokenizer):
    """A `tokenizer.json` behind the contract of this house."""

    kind = "pretrained"

    def __init__(self, data: bytes) -> None:
        self._data = data
        described = _described(data)
        with native("read this tokenizer.json"):
            self._library = Native.from_str(data.decode())
            self._library.no_truncation()
            self._library.no_padding()
            self._library.encode_special_tokens = True
            names: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        size = max(names.values(), default=-1) + 1
        if not 0 < size <= LARGEST_VOCABULARY:
            raise TokenizerError(f"A vocabulary of {size:,} ids is refused; 1 to {LARGEST_VOCABULARY:,} would work.")
        byte_level = _uses_byte_level(described)
        self._table = _table(names, size, described, byte_level)
        found = [names[name] for name in _BOUNDARIES if name in names and not self._table[names[name]]]
        self.boundary = found[0] if found else size
        self._table += [b""] * (self.boundary == size)
        self.vocabulary = len(self._table)
        self._pieces = PieceTable(self._table)
        self._singles = [names.get(spelled(bytes([byte])), -1) for byte in range(256)] if byte_level else [-1] * 256
        self.lossless = byte_level and min(self._singles) >= 0 and _keeps_text(described)

    def encode(self, data: bytes) -> np.ndarray:
        ids: list[int] = []
        with native("encode with this tokenizer.json"):
            for part in stretches(data):
                if isinstance(part, str):
                    ids += self._library.encode(part, add_special_tokens=False).ids
                elif self._singles[part] >= 0:
                    ids.append(self._singles[part])
                else:
                    ids += self._library.encode("\ufffd", add_special_tokens=False).ids
        return np.array(ids, self.dtype)

    def decode(self, ids: Iterable[int] | np.ndarray) -> bytes:
        return self._pieces.join(ids)

    def piece(self, token: int) -> bytes:
        return self._pieces.join([token])

    def save(self) -> bytes:
        return self._data

    @classmethod
    def load(cls, data: bytes) -> "PretrainedTokenizer":
        if not 0 < len(data) <= _LARGEST_FILE:
            raise TokenizerError(
                f"A tokenizer.json of {len(data):,} bytes is refused; 1 to {_LARGEST_FILE:,} would work."
            )
        return cls(data)


class Config(TokenizerConfig):
    """Which file is read."""

    made = PretrainedTokenizer

    path: str
    """The `tokenizer.json` file."""
    accept_loss: bool = False
    """Go on where documents lose something in encoding; they are counted in the manifest."""

    @property
    def accepts_loss(self) -> bool:
        return self.accept_loss

    def train(self, documents: Iterable[bytes], seed: int) -> PretrainedTokenizer:  # noqa: ARG002
        try:
            with open(Path(self.path), "rb") as file:
                data = file.read(_LARGEST_FILE + 1)
        except OSError as error:
            raise TokenizerError(f"{self.path} cannot be read: {error.strerror or error}.") from None
        return PretrainedTokenizer.load(data)


def _described(data: bytes) -> dict[str, Any]:
    try:
        described = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"This tokenizer.json is not JSON: {error}.") from None
    if not isinstance(described, dict) or not isinstance(described.get("model"), dict):
        raise TokenizerError("This tokenizer.json describes no model.")
    return described


def _parts(step: Any) -> list[dict[str, Any]]:
    """The simple steps of a pre-tokenizer or normalizer, sequences taken apart."""
    if not isinstance(step, dict):
        return []
    inner = step.get("pretokenizers") or step.get("normalizers")
    return [part for child in inner for part in _parts(child)] if isinstance(inner, list) else [step]


def _uses_byte_level(described: dict[str, Any]) -> bool:
    return any(part.get("type") == "ByteLevel" for part in _parts(described.get("pre_tokenizer")))


def _keeps_text(described: dict[str, Any]) -> bool:
    steps = _parts(described.get("pre_tokenizer"))
    adds = any(step.get("add_prefix_space") for step in steps if step.get("type") == "ByteLevel")
    removes = any(step.get("behavior") == "Removed" or "Whitespace" in str(step.get("type")) for step in steps)
    return described.get("normalizer") is None and not adds and not removes


def _table(names: dict[str, int], size: int, described: dict[str, Any], byte_level: bool) -> list[bytes]:
    added = {token["id"]: token for token in described.get("added_tokens") or []}
    table = [b""] * size
    for name, token in names.items():
        if token in added:
            table[token] = b"" if added[token].get("special") else name.encode()
        elif byte_level:
            table[token] = unspelled(name) or b""
        elif len(name) == 6 and name.startswith("<0x"):
            table[token] = bytes([int(name[3:5], 16)])
        else:
            table[token] = name.replace(_SPACE_MARK, " ").encode()
    return table
