"""The unigram cut against the enumeration of all cuts."""

import sysconfig
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairway.core.errors import TokenizerError
from fairway.data.tokenizer.unigram import Config, UnigramTokenizer

TEXT = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_bytes()
SMALL = UnigramTokenizer([b"ab", b"abc", b"bc", b"cc", b"abab"], [9] * 256 + [11, 14, 12, 5, 18])


def cheapest(tokenizer: UnigramTokenizer, word: bytes) -> tuple[int, int]:
    """Cost and number of pieces of the best of all cuts."""
    ids = {piece: place for place, piece in enumerate(p for p in tokenizer.table if p)}
    found = []
    for count in range(len(word)):
        for places in combinations(range(1, len(word)), count):
            bounds = [0, *places, len(word)]
            parts = [word[a:b] for a, b in pairwise(bounds)]
            if all(part in ids for part in parts):
                found.append((sum(tokenizer.costs[ids[part]] for part in parts), len(parts)))
    return min(found)


@given(st.text(alphabet="abc", min_size=1, max_size=9))
def test_the_cut_is_the_cheapest_of_all_cuts(text: str) -> None:
    word = text.encode()
    ids = SMALL.word_ids(word)
    cost = sum(SMALL.costs[token if token < 256 else token - 1] for token in ids)
    assert b"".join(SMALL.table[token] for token in ids) == word
    assert (cost, len(ids)) == cheapest(SMALL, word)


def test_pieces_are_found_that_shorten_the_text() -> None:
    tokenizer = Config.read({"vocabulary": 600}).train([TEXT], 0)
    assert 500 < tokenizer.vocabulary <= 600
    assert len(tokenizer.encode(TEXT)) < 0.6 * len(TEXT)


@pytest.mark.parametrize("place", [0, 1, 5, -1])
def test_damaged_bytes_are_refused(place: int) -> None:
    saved = bytearray(SMALL.save())
    saved[place] ^= 0xFF
    with pytest.raises(TokenizerError):
        UnigramTokenizer.load(bytes(saved))
