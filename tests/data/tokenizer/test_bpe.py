"""Byte-pair encoding against a brute-force trainer, a brute-force encoder and the best possible cut."""

import sysconfig
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.core.errors import ConfigError, TokenizerError
from fairway.data.tokenizer.bpe import BpeTokenizer, Config, cut
from fairway.data.words import FIRST_PIECE, splitter

TEXT = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_bytes()


def brute_force_merges(documents: list[bytes], vocabulary: int, digits: str, spaces: str) -> list[tuple[int, int]]:
    """Counts every pair of every word anew before each merge, as the definition says."""
    pattern = splitter(digits, spaces)  # pyrefly: ignore
    counts = Counter(word for document in documents for word in pattern.findall(document))
    words = [(list(word), count) for word, count in counts.items()]
    table = {bytes([byte]): byte for byte in range(256)}
    names = {byte: bytes([byte]) for byte in range(256)}
    merges: list[tuple[int, int]] = []
    while FIRST_PIECE + len(table) - 256 < vocabulary:
        pairs: Counter[tuple[int, int]] = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        piece = names[best[0]] + names[best[1]]
        made = table.setdefault(piece, FIRST_PIECE + len(table) - 256)
        names[made] = piece
        merges.append(best)
        words = [(applied(ids, best, made), count) for ids, count in words]
    return merges


def applied(ids: list[int], pair: tuple[int, int], made: int) -> list[int]:
    result: list[int] = []
    place = 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            result.append(made)
            place += 2
        else:
            result.append(ids[place])
            place += 1
    return result


def brute_force_word(tokenizer: BpeTokenizer, word: bytes) -> list[int]:
    """Applies the merges one after another in the order they were learned, each wherever it fits."""
    ids = list(word)
    table = {piece: token for token, piece in enumerate(tokenizer.table) if piece}
    for left, right in tokenizer.merges:
        ids = applied(ids, (left, right), table[tokenizer.table[left] + tokenizer.table[right]])
    return ids


@pytest.mark.parametrize("digits", ["none", "single", "three"])
@pytest.mark.parametrize("spaces", ["prefix", "alone"])
def test_training_gives_the_merges_of_the_brute_force_trainer(digits: str, spaces: str) -> None:
    documents = [TEXT[:20_000], TEXT[20_000:40_000]]
    trained = Config.read({"vocabulary": 330, "digits": digits, "spaces": spaces}).train(documents, 0)
    assert list(trained.merges) == brute_force_merges(documents, 330, digits, spaces)
    assert trained.vocabulary == 330


@settings(max_examples=60)
@given(st.lists(st.text(alphabet="abc ", max_size=60).map(str.encode), max_size=6))
def test_small_texts_with_ties_give_the_merges_of_the_brute_force_trainer(documents: list[bytes]) -> None:
    trained = Config.read({"vocabulary": 280}).train(documents, 0)
    assert list(trained.merges) == brute_force_merges(documents, 280, "single", "prefix")


@settings(max_examples=200)
@given(st.binary(max_size=64))
def test_a_word_is_cut_as_by_applying_every_merge_in_turn(word: bytes) -> None:
    assert TRAINED.word_ids(word) == brute_force_word(TRAINED, word)


def test_words_of_the_text_are_cut_as_by_applying_every_merge_in_turn() -> None:
    for word in set(splitter("single", "prefix").findall(TEXT[:60_000])):
        assert TRAINED.word_ids(word) == brute_force_word(TRAINED, word)


def test_no_cut_into_pieces_is_shorter_than_the_best_one() -> None:
    pieces = set(TRAINED.table) - {b""}
    for word in set(splitter("single", "prefix").findall(TEXT[:30_000])):
        best = [0]
        for end in range(1, len(word) + 1):
            best.append(min(best[start] + 1 for start in range(end) if word[start:end] in pieces))
        assert best[-1] <= len(TRAINED.word_ids(word))


@pytest.mark.parametrize("vocabulary", [257, 258, 300, 511, 512, 700])
def test_cutting_a_large_vocabulary_equals_training_a_small_one(vocabulary: int) -> None:
    small = Config.read({"vocabulary": vocabulary}).train([TEXT], 0)
    shorter = cut(TRAINED, vocabulary)
    assert shorter.merges == small.merges
    assert shorter.vocabulary == vocabulary
    assert shorter.encode(TEXT).tolist() == small.encode(TEXT).tolist()


def test_cutting_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(TokenizerError, match="257 to 700 would work"):
        cut(TRAINED, 701)


def test_fewer_ids_come_out_of_a_text_without_repeats() -> None:
    assert Config.read({"vocabulary": 2000}).train([b"abcdefg"], 0).vocabulary == 257


def test_saving_takes_at_most_two_and_a_half_bytes_a_merge() -> None:
    assert len(TRAINED.save()) <= 5 + 2.5 * len(TRAINED.merges)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([(97, 999)], "not pieces made before"),
        ([(256, 97)], "not pieces made before"),
        ([(97, 98), (97, 98)], "second time"),
        ([(97, 97), *((257 + n, 257 + n) for n in range(7))], "words have at most 64"),
    ],
)
def test_merges_that_make_no_sense_are_refused(merges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        BpeTokenizer(merges)


def test_dropout_cuts_differently_each_time_and_always_gives_the_text_back() -> None:
    tokenizer = Config.read({"vocabulary": 700, "dropout": 0.2}).train([TEXT], 0)
    assert tokenizer.random_training
    draws = [tokenizer.encode_for_training(TEXT[:3000], np.random.default_rng(n)) for n in (0, 1, 0)]
    assert draws[0].tolist() == draws[2].tolist() != draws[1].tolist()
    assert all(tokenizer.decode(ids) == TEXT[:3000] for ids in draws)
    plain = tokenizer.encode(TEXT[:3000])
    assert plain.tolist() == TRAINED.encode(TEXT[:3000]).tolist()
    assert len(draws[0]) > len(plain)


def test_dropout_of_nearly_everything_leaves_nearly_only_bytes() -> None:
    tokenizer = BpeTokenizer(TRAINED.merges, dropout=0.999)
    ids = tokenizer.encode_for_training(TEXT[:2000], np.random.default_rng(0))
    assert len(ids) > 1950


def test_a_vocabulary_below_the_bytes_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="vocabulary"):
        Config.read({"vocabulary": 256})


TRAINED = Config.read({"vocabulary": 700}).train([TEXT], 0)
