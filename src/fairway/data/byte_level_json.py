"""The `tokenizer.json` format, written for tokenizers over words so that other libraries can use them.

The file cuts words by the same pattern, over the byte-level letters that this format uses instead of bytes.
On UTF-8 text it gives the same ids; this format cannot take any other bytes.
"""

import json
from collections.abc import Sequence
from typing import Any

from fairway.data.words import BOUNDARY, Digits, Spaces, word_pattern

DOCUMENT_MARK = "<|document|>"


def byte_letters() -> list[str]:
    """The format's letter for each byte: printable Latin-1 is itself, the rest count up from U+0100."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(itself)]
    letter = {byte: chr(byte) for byte in itself} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}
    return [letter[byte] for byte in range(256)]


_LETTERS = byte_letters()
_RESERVED = frozenset(rb"\^$.|?*+()[]{}-&~#/")
_BYTES = {letter: byte for byte, letter in enumerate(_LETTERS)}


def spelled(piece: bytes) -> str:
    """A byte string in the format's letters."""
    return "".join(map(_LETTERS.__getitem__, piece))


def unspelled(text: str) -> bytes | None:
    """The bytes a string of the format's letters stands for; None where it holds any other letter."""
    values = [_BYTES.get(letter) for letter in text]
    return None if None in values else bytes(value for value in values if value is not None)


def byte_level_json(model: dict[str, Any], table: Sequence[bytes], digits: Digits, spaces: Spaces) -> str:
    """A whole `tokenizer.json` around a model without its vocabulary; the boundary is a special token."""
    names = [DOCUMENT_MARK if token == BOUNDARY else spelled(piece) for token, piece in enumerate(table)]
    pattern = word_pattern(digits, spaces, lambda byte: "\\" + _LETTERS[byte] if byte in _RESERVED else _LETTERS[byte])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    mark = {"id": BOUNDARY, "content": DOCUMENT_MARK, "single_word": False, "lstrip": False, "rstrip": False}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{**mark, "normalized": False, "special": True}],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [byte_level, split]},
            "post_processor": None,
            "decoder": byte_level,
            "model": {"vocab": {name: token for token, name in enumerate(names)}, **model},
        },
        ensure_ascii=False,
    )
