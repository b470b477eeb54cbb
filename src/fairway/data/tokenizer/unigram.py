"""Unigram language model: of all ways to cut a word into pieces, the most probable one.

With piece probabilities p fitted by EM, encode(word) = argmin over cuts of sum(cost(piece)), cost = -ln p.
Costs are kept as whole sixteenths of a nat, so the result is the same on every machine; among equal cuts the
one with fewer pieces wins, then the one whose last piece is longest. Every byte is a piece, so every text can
be cut.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import final

from fairway.core.config import Source
from fairway.core.errors import TokenizerError
from fairway.data.words import (
    BOUNDARY,
    DIGITS,
    FIRST_PIECE,
    LARGEST_VOCABULARY,
    SPACES,
    Digits,
    Spaces,
    WordConfig,
    WordTokenizer,
    splitter,
    words_of,
)

SOURCE = Source("Kudo", 2018, "arXiv:1804.10959")

_GRID = 16
_DEAREST = 255
_WORDS = 50_000
_SEED_FACTOR = 8
_SEED_TABLE = 4_000_000
_EM_STEPS = 2
_KEPT = 0.6
_LONGEST_PIECE = 16
_LARGEST_SAVED = 32_000_000


@final
class UnigramTokenizer(WordTokenizer):
    """The cheapest cut of every word. `costs` has one whole number for each byte, then one for each piece."""

    kind = "unigram"

    def __init__(
        self,
        pieces: Sequence[bytes],
        costs: Sequence[int],
        digits: Digits = "single",
        spaces: Spaces = "prefix",
    ) -> None:
        assert len(costs) == 256 + len(pieces)
        super().__init__(pieces, digits, spaces)
        self.costs = tuple(costs)
        ids = [*range(256), *range(FIRST_PIECE, self.vocabulary)]
        self._priced = {self.table[token]: (cost, token) for token, cost in zip(ids, costs, strict=True)}
        self._longest = max(map(len, self._priced))

    def word_ids(self, word: bytes) -> list[int]:
        return self._cut(word, None)[0]

    def cost_without(self, piece: bytes) -> int:
        """Cost of the best cut of a piece into others."""
        return self._cut(piece, piece)[1]

    def _cut(self, word: bytes, left_out: bytes | None) -> tuple[list[int], int]:
        best: list[tuple[int, int]] = [(0, 0)]
        last: list[tuple[int, int]] = [(0, 0)]
        for end in range(1, len(word) + 1):
            found, cut = None, (0, 0)
            for start in range(max(0, end - self._longest), end):
                part = word[start:end]
                priced = self._priced.get(part)
                if priced is not None and part != left_out:
                    cost, token = priced
                    total = (best[start][0] + cost, best[start][1] + 1)
                    if found is None or total < found:
                        found, cut = total, (start, token)
            assert found is not None
            best.append(found)
            last.append(cut)
        ids, end = [], len(word)
        while end:
            end, token = last[end]
            ids.append(token)
        return ids[::-1], best[-1][0]

    def save(self) -> bytes:
        pieces = self.table[FIRST_PIECE:]
        parts = [
            len(pieces).to_bytes(4, "little"),
            bytes(self.costs),
            bytes(map(len, pieces)),
            b"".join(pieces),
        ]
        settings = bytes([DIGITS.index(self.digits) * len(SPACES) + SPACES.index(self.spaces)])
        return settings + zlib.compress(b"".join(parts), 9)

    @classmethod
    def load(cls, data: bytes) -> "UnigramTokenizer":
        if not data or data[0] >= len(DIGITS) * len(SPACES):
            raise TokenizerError("The saved unigram tokenizer has no readable header.")
        digits, spaces = divmod(data[0], len(SPACES))
        content = _inflated(data[1:])
        count = int.from_bytes(content[:4], "little")
        costs, lengths = content[4 : 260 + count], content[260 + count : 260 + 2 * count]
        text = content[260 + 2 * count :]
        if count > LARGEST_VOCABULARY or len(lengths) != count or len(costs) != 256 + count:
            raise TokenizerError(f"The saved unigram tokenizer claims {count} pieces, more than it holds.")
        if sum(lengths) != len(text) or any(not 2 <= length <= _LONGEST_PIECE for length in lengths):
            raise TokenizerError(f"The pieces of the saved unigram tokenizer must have 2 to {_LONGEST_PIECE} bytes.")
        pieces, start = [], 0
        for length in lengths:
            pieces.append(text[start : start + length])
            start += length
        if len(set(pieces)) != len(pieces):
            raise TokenizerError("The saved unigram tokenizer has a piece twice.")
        return cls(pieces, list(costs), DIGITS[digits], SPACES[spaces])


class Config(WordConfig):
    """A unigram model, trained on the 50,000 commonest words by hard EM and pruning."""

    made = UnigramTokenizer

    def train(self, documents: Iterable[bytes], seed: int) -> UnigramTokenizer:  # noqa: ARG002
        pattern = splitter(self.digits, self.spaces)
        counts: Counter[bytes] = Counter()
        for document in documents:
            for words in words_of(pattern, document):
                counts.update(words)
            if len(counts) > 2 * _WORDS:
                counts = _most(counts, _WORDS)
        words = _most(counts, _WORDS)
        wanted = self.vocabulary - FIRST_PIECE
        pieces = _seed_pieces(words, max(_SEED_FACTOR * wanted, 1000)) if wanted else []
        tokenizer = UnigramTokenizer(pieces, [_GRID * 8] * (256 + len(pieces)), self.digits, self.spaces)
        while True:
            for _ in range(_EM_STEPS - 1):
                tokenizer, _ = _refit(tokenizer, words)
            tokenizer, uses = _refit(tokenizer, words)
            left = len(tokenizer.table) - FIRST_PIECE
            if left <= wanted:
                return tokenizer
            tokenizer = _pruned(tokenizer, uses, max(wanted, int(left * _KEPT)))


def _most(counts: Counter[bytes], size: int) -> Counter[bytes]:
    """The commonest words; of equally common ones those that sort first."""
    return Counter(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]))


def _seed_pieces(words: Counter[bytes], size: int) -> list[bytes]:
    """The parts of words that cover most text, counted wherever they stand."""
    found: Counter[bytes] = Counter()
    for word, count in words.items():
        for start in range(len(word) - 1):
            for end in range(start + 2, min(len(word), start + _LONGEST_PIECE) + 1):
                found[word[start:end]] += count
        if len(found) > _SEED_TABLE:
            found = Counter({piece: count for piece, count in found.items() if count > 1})
    kept = ((piece, count) for piece, count in found.items() if count > 1)
    ranked = sorted(kept, key=lambda item: (-item[1] * len(item[0]), item[0]))
    return [piece for piece, _ in ranked[:size]]


def _refit(tokenizer: UnigramTokenizer, words: Counter[bytes]) -> tuple[UnigramTokenizer, list[int]]:
    """One step of hard EM: costs from how often the best cuts use each piece, and those numbers of uses."""
    uses = [0] * tokenizer.vocabulary
    for word, count in words.items():
        for token in tokenizer.word_ids(word):
            uses[token] += count
    # Half a use more for every id keeps bytes and pieces that were never used at a finite cost.
    total = math.log(sum(uses) + tokenizer.vocabulary / 2)
    costs = [
        min(_DEAREST, max(1, round(_GRID * (total - math.log(use + 0.5)))))
        for token, use in enumerate(uses)
        if token != BOUNDARY
    ]
    pieces = tokenizer.table[FIRST_PIECE:]
    return UnigramTokenizer(pieces, costs, tokenizer.digits, tokenizer.spaces), uses


def _pruned(tokenizer: UnigramTokenizer, uses: list[int], size: int) -> UnigramTokenizer:
    """Keeps the pieces with the highest loss: uses times what the best cut without the piece adds."""
    losses = []
    for token in range(FIRST_PIECE, tokenizer.vocabulary):
        piece, cost = tokenizer.table[token], tokenizer.costs[token - 1]
        losses.append((-uses[token] * (tokenizer.cost_without(piece) - cost), piece, cost))
    kept = sorted(losses)[:size]
    costs = [*tokenizer.costs[:256], *(cost for _, _, cost in kept)]
    return UnigramTokenizer([piece for _, piece, _ in kept], costs, tokenizer.digits, tokenizer.spaces)


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, _LARGEST_SAVED)
    except zlib.error as error:
        raise TokenizerError(f"The saved unigram tokenizer cannot be unpacked: {error}.") from None
    if not stream.eof or stream.unused_data:
        raise TokenizerError("The saved unigram tokenizer is cut short or goes on behind its end.")
    return content
