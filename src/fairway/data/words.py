"""Byte-level tokenizers that work inside words: the linear splitter, the alphabet, and the cached encoder.

A text is first cut into words of at most `LONGEST_WORD` bytes; every byte belongs to exactly one word, and
what stands in one word never changes how another is cut. The cut is defined on bytes: ASCII letters and the
bytes of multi-byte characters make words, other printable bytes make punctuation, and bytes that no UTF-8
text holds (0xF8 to 0xFF) stand alone. The pattern looks at most one byte around and its runs are bounded, so
the time is linear in the text, whatever the text. Ids 0 to 255 are the bytes, 256 is the boundary, and pieces
follow.
"""

import re
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from pydantic import Field

from fairway.core.errors import FairwayError, TokenizerError
from fairway.data import native_words
from fairway.data.parts import Tokenizer, TokenizerConfig

BOUNDARY = 256
FIRST_PIECE = 257
LONGEST_WORD = 64
LARGEST_VOCABULARY = 1 << 20
ALPHABET = "".join(chr(0x100 + byte) for byte in range(256))
"""Stands in for the 256 bytes in native libraries that take text: in the order of the bytes, none a space."""

Digits = Literal["none", "single", "three"]
Spaces = Literal["prefix", "alone"]
DIGITS: tuple[Digits, ...] = ("none", "single", "three")
SPACES: tuple[Spaces, ...] = ("prefix", "alone")

_TO_ALPHABET = dict(enumerate(ALPHABET))
_BLOCK = 1 << 20
_CACHED_WORDS = 1 << 18
_FEW = 32
_SPACE = b" \t\n\r\f\v"
_DIGIT = b"0123456789"
_LETTER = bytes(byte for byte in range(256) if chr(byte).isascii() and chr(byte).isalpha()) + bytes(range(0x80, 0xF8))
_NEVER = bytes(range(0xF8, 0x100))
_MARK = bytes(sorted(set(range(256)) - set(_SPACE + _DIGIT + _LETTER + _NEVER)))


class WordConfig(TokenizerConfig):
    """Settings shared by the tokenizers that work inside words."""

    vocabulary: int = Field(default=1024, ge=FIRST_PIECE, le=LARGEST_VOCABULARY)
    """Number of ids, the boundary and the 256 bytes included; fewer come out where the text has too few
    repeats.
    """
    digits: Digits = "single"
    """`single`: each digit is a word; `three`: up to three are; `none`: digits are letters like any other."""
    spaces: Spaces = "prefix"
    """`prefix`: a word takes the one space before it; `alone`: spaces make words of their own."""


class WordTokenizer(Tokenizer):
    """A tokenizer over words; a subclass says how one word is cut into pieces.

    `pieces` are the byte strings of the ids from `FIRST_PIECE` on.
    """

    boundary = BOUNDARY
    lossless = True

    def __init__(self, pieces: Iterable[bytes], digits: Digits, spaces: Spaces) -> None:
        self.digits: Digits = digits
        self.spaces: Spaces = spaces
        self.table = [bytes([byte]) for byte in range(256)] + [b"", *pieces]
        self.vocabulary = len(self.table)
        self._pattern = splitter(digits, spaces)
        self._pieces = PieceTable(self.table)
        code = "H" if self.dtype.itemsize == 2 else "I"
        self._cache = _Cache(lambda word: array(code, self.word_ids(word)).tobytes())

    @abstractmethod
    def word_ids(self, word: bytes) -> list[int]:
        """Ids of one word of at most `LONGEST_WORD` bytes."""

    def encode(self, data: bytes) -> np.ndarray:
        ids_of = self._cache.__getitem__
        return np.frombuffer(
            b"".join(b"".join(map(ids_of, words)) for words in words_of(self._pattern, data)), self.dtype
        )

    def decode(self, ids: Iterable[int] | np.ndarray) -> bytes:
        return self._pieces.join(ids)

    def piece(self, token: int) -> bytes:
        return join_pieces(self.table, [token])


def splitter(digits: Digits, spaces: Spaces) -> re.Pattern[bytes]:
    """The compiled pattern whose matches are the words."""
    return re.compile(word_pattern(digits, spaces, lambda byte: f"\\x{byte:02x}").encode())


def word_pattern(digits: Digits, spaces: Spaces, show: Callable[[int], str]) -> str:
    """The pattern of one word as a regular expression, over whatever stands for a byte."""

    def any_of(group: bytes) -> str:
        return "[" + "".join(map(show, group)) + "]"

    run = f"{{1,{LONGEST_WORD - 1}}}"
    lead = f"{show(0x20)}?" if spaces == "prefix" else ""
    letter = any_of(_LETTER + _DIGIT if digits == "none" else _LETTER)
    space = any_of(_SPACE)
    choices = [f"{lead}{letter}{run}", f"{lead}{any_of(_MARK)}{run}"]
    if digits != "none":
        choices.append(any_of(_DIGIT) + ("{1,3}" if digits == "three" else ""))
    if spaces == "prefix":
        not_space = any_of(bytes(sorted(set(range(256)) - set(_SPACE))))
        line_end = any_of(_SPACE.replace(b" ", b""))
        # A run of blanks leaves its last one to the word behind it; one that ends a line is whole.
        choices += [f"{space}{run}(?:(?!{not_space})|(?<={line_end}))", space]
    else:
        choices.append(f"{space}{run}")
    return "|".join([*choices, any_of(_NEVER)])


def native_rule(digits: Digits, spaces: Spaces) -> native_words.Words:
    """The same cut as `splitter`'s for the native kernels."""
    groups = [_LETTER + _DIGIT if digits == "none" else _LETTER, _MARK, _DIGIT, _SPACE, _NEVER]
    kinds = bytes(next(kind for kind, group in enumerate(groups) if byte in group) for byte in range(256))
    letters = "".join(f"\\x{byte:02x}" for byte in groups[0])
    letter_end = re.compile(f"[{letters}](?![{letters}])".encode())
    return native_words.Words(kinds, 3 if digits == "three" else 1, spaces == "prefix", letter_end)


def words_of(pattern: re.Pattern[bytes], data: bytes) -> Iterator[list[bytes]]:
    """The words of a text in lists of bounded size; their concatenation is the text."""
    start = 0
    while len(data) - start > _BLOCK:
        words = pattern.findall(data, start, start + _BLOCK)
        # The last word may go on behind the block; it is cut anew at the head of the next one.
        start += _BLOCK - len(words.pop())
        yield words
    yield pattern.findall(data, start)


def as_words(pattern: re.Pattern[bytes], documents: Iterable[bytes]) -> Iterator[str]:
    """The documents for a native trainer: bytes as letters of `ALPHABET`, one blank between two words."""
    for document in documents:
        for words in words_of(pattern, document):
            yield " ".join(word.decode("latin-1").translate(_TO_ALPHABET) for word in words)


def join_pieces(table: list[bytes], ids: Iterable[int] | np.ndarray) -> bytes:
    """The bytes of a sequence of ids; raises `TokenizerError` naming the first id outside the table."""
    ids = ids.tolist() if isinstance(ids, np.ndarray) else [int(token) for token in ids]
    if ids and (min(ids) < 0 or max(ids) >= len(table)):
        wrong = next(token for token in ids if not 0 <= token < len(table))
        raise TokenizerError(f"Token id {wrong} is not in the vocabulary of {len(table)} ids.")
    return b"".join(map(table.__getitem__, ids))


class PieceTable:
    """The bytes of every id of a tokenizer, joined natively where many ids come at once."""

    def __init__(self, table: list[bytes]) -> None:
        self.table = table
        self._joiner: native_words.Joiner | None = None

    def join(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The same as `join_pieces`."""
        if not isinstance(ids, np.ndarray) or ids.dtype not in (np.uint16, np.uint32) or len(ids) < _FEW:
            return join_pieces(self.table, ids)
        if not native_words.usable() or int(ids.max()) >= len(self.table):
            return join_pieces(self.table, ids)
        self._joiner = self._joiner or native_words.Joiner(self.table)
        return self._joiner.join(ids)


@contextmanager
def native(task: str) -> Iterator[None]:
    """Turns whatever a native library throws, its panics included, into one `TokenizerError`."""
    try:
        yield
    except (FairwayError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise TokenizerError(f"The tokenizer library could not {task}: {type(error).__name__}: {error}") from error


class _Cache(dict[bytes, bytes]):
    """Words already cut; emptied when it has grown to its bound, so any text is encoded in bounded memory."""

    def __init__(self, make: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, word: bytes) -> bytes:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        self[word] = ids = self._make(word)
        return ids
