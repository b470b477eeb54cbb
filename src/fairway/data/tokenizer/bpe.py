"""Byte-level byte-pair encoding: the most frequent pair of neighbours becomes one piece, again and again.

Training: in words weighted by their counts, merge the pair with the highest count; ties go to the smaller
(left id, right id), where bytes come in their own order and pieces in the order they were made. A pair
whose joined bytes are a piece already reuses its id. Encoding: in each word, apply the earliest learned merge
present, leftmost first, until none applies. Training is greedy, so the merges of a smaller vocabulary are a
prefix of those of a larger one. With `dropout` p, each possible merge of a training text is skipped with
probability p at every step (Provilkov et al. 2019, arXiv:1910.13267).
"""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, final

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer as Native
from tokenizers import models, pre_tokenizers, trainers

from fairway.core.config import Source
from fairway.core.errors import TokenizerError
from fairway.core.log import say_once
from fairway.core.native import why_not
from fairway.data import native_words
from fairway.data.byte_level_json import byte_level_json, spelled
from fairway.data.packed import pack_numbers, unpack_numbers
from fairway.data.words import (
    ALPHABET,
    BOUNDARY,
    DIGITS,
    FIRST_PIECE,
    LARGEST_VOCABULARY,
    LONGEST_WORD,
    SPACES,
    Digits,
    Spaces,
    WordConfig,
    WordTokenizer,
    as_words,
    native,
    native_rule,
    splitter,
    words_of,
)

SOURCE = Source("Sennrich et al.", 2015, "arXiv:1508.07909")

_NONE = LARGEST_VOCABULARY * 2
_HEADER = 5

Merge = tuple[int, int]


@final
class BpeTokenizer(WordTokenizer):
    """Byte-pair encoding by a list of merges, each a pair of ids made before it."""

    kind = "bpe"

    def __init__(
        self,
        merges: Sequence[Merge],
        digits: Digits = "single",
        spaces: Spaces = "prefix",
        dropout: float = 0.0,
    ) -> None:
        self.merges = tuple(merges)
        self.dropout = dropout
        pieces, self._ranks = _follow(self.merges)
        super().__init__(pieces, digits, spaces)
        self._made = [made for _, made in self._ranks.values()]
        self._encoder: native_words.Encoder | None = None

    def encode(self, data: bytes) -> np.ndarray:
        return self.encode_all([data])[0]

    def encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        if not native_words.usable():
            say_once(f"Byte-pair encoding goes word by word in Python: native kernels are {why_not()}.")
            return [super(BpeTokenizer, self).encode(text) for text in texts]
        if self._encoder is None:
            rule = native_rule(self.digits, self.spaces)
            self._encoder = native_words.Encoder(rule, self.merges, self._made, self.dtype)
        return self._encoder.encode(texts)

    def word_ids(self, word: bytes) -> list[int]:
        ids = list(word)
        ranks = [self._rank(pair) for pair in pairwise(ids)]
        while ranks and (rank := min(ranks)) != _NONE:
            place = ranks.index(rank)
            ids[place : place + 2] = [self._made[rank]]
            del ranks[place]
            if place > 0:
                ranks[place - 1] = self._rank((ids[place - 1], ids[place]))
            if place < len(ranks):
                ranks[place] = self._rank((ids[place], ids[place + 1]))
        return ids

    @property
    def random_training(self) -> bool:
        return self.dropout > 0

    def encode_for_training(self, data: bytes, generator: np.random.Generator) -> np.ndarray:
        if not self.dropout:
            return self.encode(data)
        ids: list[int] = []
        for words in words_of(self._pattern, data):
            for word in words:
                ids += self._dropped(word, generator)
        return np.array(ids, self.dtype)

    def _dropped(self, word: bytes, generator: np.random.Generator) -> list[int]:
        ids = list(word)
        while len(ids) > 1:
            ranks = [self._rank(pair) for pair in pairwise(ids)]
            skipped = generator.random(len(ranks)) < self.dropout
            kept = [_NONE if skip else rank for rank, skip in zip(ranks, skipped.tolist(), strict=True)]
            rank = min(kept)
            if rank == _NONE:
                break
            place = kept.index(rank)
            ids[place : place + 2] = [self._made[rank]]
        return ids

    def _rank(self, pair: Merge) -> int:
        found = self._ranks.get(pair)
        return _NONE if found is None else found[0]

    def save(self) -> bytes:
        """Five bytes of header, then two ids a merge in as few bits as the ids made so far need."""
        settings = bytes([DIGITS.index(self.digits) * len(SPACES) + SPACES.index(self.spaces)])
        limits = [limit for place in range(len(self.merges)) for limit in (FIRST_PIECE + place,) * 2]
        numbers = [token for merge in self.merges for token in merge]
        return settings + len(self.merges).to_bytes(_HEADER - 1, "little") + pack_numbers(numbers, limits)

    @classmethod
    def load(cls, data: bytes) -> "BpeTokenizer":
        if len(data) < _HEADER or data[0] >= len(DIGITS) * len(SPACES):
            raise TokenizerError("The saved bpe tokenizer has no readable header.")
        digits, spaces = divmod(data[0], len(SPACES))
        count = int.from_bytes(data[1:_HEADER], "little")
        if count > LARGEST_VOCABULARY or count > 4 * len(data):
            raise TokenizerError(
                f"The saved bpe tokenizer claims {count} merges, more than its {len(data)} bytes hold."
            )
        limits = [limit for place in range(count) for limit in (FIRST_PIECE + place,) * 2]
        numbers = unpack_numbers(data[_HEADER:], limits)
        return cls(list(zip(numbers[::2], numbers[1::2], strict=True)), DIGITS[digits], SPACES[spaces])

    def tokenizer_json(self) -> str:
        """The same tokenizer as a `tokenizer.json`, which takes UTF-8 text only."""
        names = [spelled(piece) for piece in self.table]
        model = {
            "type": "BPE",
            "merges": [[names[left], names[right]] for left, right in self.merges],
        }
        return byte_level_json(model, self.table, self.digits, self.spaces)


def cut(tokenizer: BpeTokenizer, vocabulary: int) -> BpeTokenizer:
    """The tokenizer that training at a smaller vocabulary on the same text would have given."""
    if not FIRST_PIECE <= vocabulary <= tokenizer.vocabulary:
        raise TokenizerError(
            f"A vocabulary of {tokenizer.vocabulary} ids cannot be cut to {vocabulary}; "
            f"{FIRST_PIECE} to {tokenizer.vocabulary} would work."
        )
    highest = FIRST_PIECE - 1
    kept: list[Merge] = []
    for merge, made in zip(tokenizer.merges, tokenizer._made, strict=True):
        if highest + 1 == vocabulary:
            break
        highest = max(highest, made)
        kept.append(merge)
    return BpeTokenizer(kept, tokenizer.digits, tokenizer.spaces, tokenizer.dropout)


class Config(WordConfig):
    """Byte-pair encoding, trained natively, or where there are no kernels by the `tokenizers` library."""

    made = BpeTokenizer

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of skipping a merge while encoding training text; validation text is always encoded
    plainly.
    """

    def train(self, documents: Iterable[bytes], seed: int) -> BpeTokenizer:  # noqa: ARG002
        if self.vocabulary == FIRST_PIECE:
            return BpeTokenizer((), self.digits, self.spaces, self.dropout)
        if native_words.usable():
            merges = native_words.learn(native_rule(self.digits, self.spaces), documents, self.vocabulary)
            return BpeTokenizer(merges, self.digits, self.spaces, self.dropout)
        say_once(f"The tokenizers library trains byte-pair encoding: native kernels are {why_not()}.")
        with native("train byte-pair encoding"):
            trainer = trainers.BpeTrainer(
                vocab_size=self.vocabulary - 1,
                min_frequency=2,
                show_progress=False,
                initial_alphabet=list(ALPHABET),
            )
            library = Native(models.BPE())
            library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            library.train_from_iterator(as_words(splitter(self.digits, self.spaces), documents), trainer)
            merges = _merges(library)
        return BpeTokenizer(merges, self.digits, self.spaces, self.dropout)


def _merges(library: Native) -> list[Merge]:
    described: dict[str, Any] = json.loads(library.to_str())["model"]
    ours = {piece: token + (token >= BOUNDARY) for piece, token in described["vocab"].items()}
    return [(ours[left], ours[right]) for left, right in described["merges"]]


def _follow(merges: Sequence[Merge]) -> tuple[list[bytes], dict[Merge, tuple[int, int]]]:
    """Pieces made by the merges, and for each merge its rank and the id it makes."""
    table = [bytes([byte]) for byte in range(256)] + [b""]
    known = {piece: token for token, piece in enumerate(table)}
    ranks: dict[Merge, tuple[int, int]] = {}
    for rank, (left, right) in enumerate(merges):
        if not (0 <= left < len(table) and 0 <= right < len(table)) or BOUNDARY in (left, right):
            raise TokenizerError(f"Merge {rank} joins ids {left} and {right}, which are not pieces made before it.")
        if (left, right) in ranks:
            raise TokenizerError(f"Merge {rank} joins ids {left} and {right} a second time.")
        piece = table[left] + table[right]
        if len(piece) > LONGEST_WORD:
            raise TokenizerError(
                f"Merge {rank} makes a piece of {len(piece)} bytes; words have at most {LONGEST_WORD}."
            )
        if piece not in known:
            known[piece] = len(table)
            table.append(piece)
        ranks[left, right] = rank, known[piece]
    return table[FIRST_PIECE:], ranks
