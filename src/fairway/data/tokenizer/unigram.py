"""Unigram language model: of all ways to cut a word into pieces, the most probable one.

With piece probabilities p fitted by EM, encode(word) = argmin over cuts of sum(cost(piece)), cost = -ln p.
Costs are kept as whole sixteenths of a nat, so the result is the same on every machine; among equal cuts the
one with fewer pieces wins, then the one whose last piece is longest. Every byte is a piece, so every text can
be cut.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, final

from tokenizers import Tokenizer as Native
from tokenizers import models, pre_tokenizers, trainers

from fairway.core.config import Source
from fairway.core.errors import TokenizerError
from fairway.data.words import (
    ALPHABET,
    DIGITS,
    FIRST_PIECE,
    LARGEST_VOCABULARY,
    SPACES,
    Digits,
    Spaces,
    WordConfig,
    WordTokenizer,
    as_words,
    from_alphabet,
    native,
    splitter,
)

SOURCE = Source("Kudo", 2018, "arXiv:1804.10959")

_GRID = 16
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
        best: list[tuple[int, int]] = [(0, 0)]
        last: list[tuple[int, int]] = [(0, 0)]
        for end in range(1, len(word) + 1):
            found, cut = None, (0, 0)
            for start in range(max(0, end - self._longest), end):
                priced = self._priced.get(word[start:end])
                if priced is not None:
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
        return ids[::-1]

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
            raise TokenizerError(
                f"The pieces of the saved unigram tokenizer must have 2 to {_LONGEST_PIECE} bytes."
            )
        pieces, start = [], 0
        for length in lengths:
            pieces.append(text[start : start + length])
            start += length
        if len(set(pieces)) != len(pieces):
            raise TokenizerError("The saved unigram tokenizer has a piece twice.")
        return cls(pieces, list(costs), DIGITS[digits], SPACES[spaces])


class Config(WordConfig):
    """A unigram model, trained by the `tokenizers` library on this house's own words."""

    made = UnigramTokenizer

    def train(self, documents: Iterable[bytes], seed: int) -> UnigramTokenizer:  # noqa: ARG002
        with native("train a unigram model"):
            trainer = trainers.UnigramTrainer(
                vocab_size=self.vocabulary - 1,
                show_progress=False,
                initial_alphabet=list(ALPHABET),
                max_piece_length=_LONGEST_PIECE,
            )
            library = Native(models.Unigram())
            library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            library.train_from_iterator(as_words(splitter(self.digits, self.spaces), documents), trainer)
            model: dict[str, Any] = json.loads(library.to_str())["model"]
        scores = {from_alphabet(piece): float(score) for piece, score in model["vocab"]}
        longer = sorted(
            (piece for piece in scores if len(piece) > 1), key=lambda piece: (-scores[piece], piece)
        )[: self.vocabulary - FIRST_PIECE]
        floor = min(scores.values(), default=0.0) - 1
        singles = [scores.get(bytes([byte]), floor) for byte in range(256)]
        costs = [_cost(score) for score in [*singles, *(scores[piece] for piece in longer)]]
        return UnigramTokenizer(longer, costs, self.digits, self.spaces)


def _cost(score: float) -> int:
    return min(255, max(1, round(-score * _GRID)))


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, _LARGEST_SAVED)
    except zlib.error as error:
        raise TokenizerError(f"The saved unigram tokenizer cannot be unpacked: {error}.") from None
    if not stream.eof or stream.unused_data:
        raise TokenizerError("The saved unigram tokenizer is cut short or goes on behind its end.")
    return content
