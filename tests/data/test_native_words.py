"""The native kernels against the definition in Python: words, merges, ids and joined bytes, for any bytes."""

import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.core.errors import TokenizerError
from fairway.core.native import LEVELS
from fairway.data import native_words
from fairway.data.tokenizer.bpe import BpeTokenizer, Config
from fairway.data.words import DIGITS, SPACES, Digits, Spaces, WordTokenizer, join_pieces, native_rule
from laws.levels import at_level

pytestmark = pytest.mark.skipif(not native_words.usable(), reason="there are no native kernels here")

HOME = Path(sysconfig.get_paths()["stdlib"])
TEXT = (HOME / "argparse.py").read_bytes()
TANGLED = st.one_of(
    st.binary(max_size=400),
    st.text(alphabet=" \t\n.,a1", max_size=400).map(str.encode),
    st.text(alphabet="  \r\n12éZ\x0b_-", max_size=400).map(str.encode),
)


def trained(digits: Digits, spaces: Spaces) -> BpeTokenizer:
    return Config.read({"vocabulary": 600, "digits": digits, "spaces": spaces}).train([TEXT], 0)


MADE = {(digits, spaces): trained(digits, spaces) for digits in DIGITS for spaces in SPACES}


def by_definition(tokenizer: BpeTokenizer, text: bytes) -> list[int]:
    return WordTokenizer.encode(tokenizer, text).tolist()


@pytest.mark.parametrize(("digits", "spaces"), MADE)
@settings(max_examples=300)
@given(TANGLED)
def test_any_bytes_have_the_ids_of_the_definition(digits: Digits, spaces: Spaces, text: bytes) -> None:
    tokenizer = MADE[digits, spaces]
    assert tokenizer.encode(text).tolist() == by_definition(tokenizer, text)


@pytest.mark.parametrize("size", [62, 63, 64, 65, 126, 127, 128, 129])
@pytest.mark.parametrize("run", [b"a", b" ", b"\n", b".", b"7", b"\xff", b" \n", "é".encode()])
def test_runs_about_the_longest_word_have_the_ids_of_the_definition(run: bytes, size: int) -> None:
    text = run * (size // len(run))
    for tokenizer in MADE.values():
        for around in (text, text + b"x", b"x" + text, b" " + text + b" ", text + b"\n.", b"1" + text + b" 1"):
            assert tokenizer.encode(around).tolist() == by_definition(tokenizer, around)


@pytest.mark.parametrize("level", LEVELS)
def test_each_instruction_level_cuts_and_learns_as_the_definition_says(level: str) -> None:
    draw = random.Random(2)
    pieces = [b" ", b"  ", b"\n", b"a", b"Word", b"7", b"2026", b".", b"\xff", "é".encode(), b" " * 70, b"x" * 130]
    tangled = b"".join(draw.choice(pieces) for _ in range(3000)) + TEXT[:4000]
    with at_level(level):
        for (digits, spaces), wanted in MADE.items():
            tokenizer = trained(digits, spaces)
            assert tokenizer.merges == wanted.merges
            assert tokenizer.encode(tangled).tolist() == by_definition(tokenizer, tangled)


def test_long_texts_are_cut_into_parts_without_a_trace() -> None:
    draw = random.Random(0)
    spaced = b"".join(draw.choice([b" word", b"\n\n", b" 12", b"...", b"\t", b"Abc"]) for _ in range(200_000))
    unbroken = b"ab" * 400_000
    blank = b" " * 700_000 + b"x"
    for text in (spaced, unbroken, blank):
        for tokenizer in MADE.values():
            assert tokenizer.encode(text).tolist() == by_definition(tokenizer, text)


def test_more_words_than_the_cache_holds_are_encoded_all_the_same() -> None:
    draw = random.Random(1)
    text = b" ".join(b"%x" % draw.getrandbits(48) for _ in range(120_000))
    tokenizer = MADE["none", "prefix"]
    assert len(set(text.split())) * 3 > 1 << 18
    several = [text, text[::-1], text.upper()]
    assert [ids.tolist() for ids in tokenizer.encode_all(several)] == [by_definition(tokenizer, x) for x in several]


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [path.read_bytes() for path in sorted(HOME.glob("*.py"))[:60]]
    alone = Config.read({"vocabulary": 700}).train(texts, 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together = Config.read({"vocabulary": 700}).train(texts, 0)
    assert together.merges == alone.merges
    for left, right in zip(together.encode_all(texts), alone.encode_all(texts), strict=True):
        assert left.tolist() == right.tolist()


@pytest.mark.parametrize(("digits", "spaces"), MADE)
def test_the_library_that_trains_without_kernels_learns_the_same_merges(
    digits: Digits, spaces: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_words, "usable", lambda: False)
    slow = trained(digits, spaces)
    assert slow.merges == MADE[digits, spaces].merges
    assert slow.encode(TEXT).tolist() == by_definition(slow, TEXT)


def test_wide_ids_are_encoded_and_joined_too() -> None:
    tokenizer = MADE["single", "prefix"]
    rule = native_rule(tokenizer.digits, tokenizer.spaces)
    encoder = native_words.Encoder(rule, tokenizer.merges, tokenizer._made, np.dtype("<u4"))
    wide = encoder.encode([TEXT])[0]
    assert wide.tolist() == by_definition(tokenizer, TEXT)
    assert tokenizer.decode(wide) == TEXT


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=300), st.randoms(use_true_random=False))
def test_joining_gives_the_pieces_in_their_order(table: list[bytes], draw: random.Random) -> None:
    ids = np.array([draw.randrange(len(table)) for _ in range(draw.randrange(200))], np.uint16)
    assert native_words.Joiner(table).join(ids) == join_pieces(table, ids)


def test_an_id_outside_the_table_is_refused_before_any_memory_is_read() -> None:
    tokenizer = MADE["single", "prefix"]
    with pytest.raises(TokenizerError, match="65535"):
        tokenizer.decode(np.full(100, 65_535, np.uint16))
