"""The splitter covers every byte once, alike in blocks and as a whole, and long texts stay linear."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairway.data import words
from fairway.data.packed import pack_numbers, unpack_numbers
from fairway.data.words import DIGITS, LONGEST_WORD, SPACES, Digits, Spaces, splitter, words_of

PATTERNS = [(digits, spaces) for digits in DIGITS for spaces in SPACES]


@pytest.mark.parametrize(("digits", "spaces"), PATTERNS)
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
def test_every_byte_lies_in_exactly_one_word(digits: Digits, spaces: Spaces, data: bytes) -> None:
    found = splitter(digits, spaces).findall(data)
    assert b"".join(found) == data
    assert all(0 < len(word) <= LONGEST_WORD for word in found)


@pytest.mark.parametrize(("digits", "spaces"), PATTERNS)
def test_blocks_cut_like_the_whole(digits: Digits, spaces: Spaces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_BLOCK", 200)
    draw = random.Random(0)
    pattern = splitter(digits, spaces)
    for _ in range(200):
        data = bytes(draw.choices(b"ab  \n1!\xc3\xff", k=draw.randrange(1500)))
        assert [word for block in words_of(pattern, data) for word in block] == pattern.findall(data)


@pytest.mark.parametrize(
    ("digits", "spaces", "expected"),
    [
        ("single", "prefix", [b"a", b" word", b" ", b"1", b"2", b"3", b"4", b"!!", b"  \n", b"x"]),
        ("three", "prefix", [b"a", b" word", b" ", b"123", b"4", b"!!", b"  \n", b"x"]),
        ("none", "prefix", [b"a", b" word", b" 1234", b"!!", b"  \n", b"x"]),
        ("single", "alone", [b"a", b" ", b"word", b" ", b"1", b"2", b"3", b"4", b"!!", b"  \n", b"x"]),
    ],
)
def test_words_are_cut_as_the_settings_say(digits: Digits, spaces: Spaces, expected: list[bytes]) -> None:
    assert splitter(digits, spaces).findall(b"".join(expected)) == expected


@pytest.mark.parametrize("run", [b"a", b" ", b"^", b"1", b"ab1 ", b"\xe6\xbc\xa2", b"\xff", b" \n"])
def test_twice_the_text_takes_about_twice_the_time(run: bytes) -> None:
    pattern = splitter("single", "prefix")

    def seconds(length: int) -> float:
        data = (run * length)[:length]
        times = []
        for _ in range(5):
            start = time.process_time()
            pattern.findall(data)
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(800_000) < 4 * seconds(400_000) + 0.01


@given(st.lists(st.integers(1, 5000).flatmap(lambda top: st.tuples(st.integers(0, top - 1), st.just(top)))))
def test_packed_numbers_come_back(pairs: list[tuple[int, int]]) -> None:
    numbers, limits = [number for number, _ in pairs], [limit for _, limit in pairs]
    packed = pack_numbers(numbers, limits)
    assert unpack_numbers(packed, limits) == numbers
    assert len(packed) == (sum((limit - 1).bit_length() for limit in limits) + 7) // 8
