"""The case marks are undone exactly, for any bytes, and bring words of different case together."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.data.tokenizer.case import CAPITAL, ESCAPE, UPPER, Config, lowered, restored
from fairway.evaluate.gates import byte_count

TRICKY = st.lists(
    st.sampled_from(
        [b"A", b"B", b"a", b"b", b" ", b"  ", b"1", b"\xc3\x84", CAPITAL, UPPER, ESCAPE, b"\n", b"Ab", b"ABC"]
    ),
    max_size=24,
).map(b"".join)


@settings(max_examples=1000)
@given(st.one_of(st.binary(max_size=60), TRICKY))
def test_any_bytes_come_back(data: bytes) -> None:
    assert restored(lowered(data)) == data


@settings(max_examples=1000)
@given(st.one_of(st.binary(max_size=60), TRICKY))
def test_marks_hold_no_bytes_of_the_text(data: bytes) -> None:
    tokenizer = Config(kind="case", inner="byte").train([], 0)
    assert tokenizer.text_bytes(b"".join(map(tokenizer.piece, tokenizer.encode(data).tolist()))) == len(data)
    assert byte_count(tokenizer, [data], [tokenizer.encode(data)]).passed


@given(TRICKY)
def test_no_capital_is_left(data: bytes) -> None:
    assert not any(65 <= byte <= 90 for byte in lowered(data))


@given(st.one_of(st.binary(max_size=60), TRICKY))
def test_any_written_bytes_can_be_read(data: bytes) -> None:
    assert isinstance(restored(data), bytes)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (b"Hello", CAPITAL + b"hello"),
        (b"a Hello", b"a" + CAPITAL + b" hello"),
        (b"say HELLO!", b"say" + UPPER + b" hello!"),
        (b"XMLHttp", UPPER + b"xml" + CAPITAL + b"http"),
        (b"aB", b"a" + CAPITAL + b"b"),
        (b"ABc", CAPITAL + b"a" + CAPITAL + b"bc"),
        (b"\xff", ESCAPE + b"\xff"),
    ],
)
def test_words_are_written_as_the_definition_says(text: bytes, written: bytes) -> None:
    assert lowered(text) == written


def test_capitals_share_the_pieces_of_small_letters() -> None:
    tokenizer = Config.read({"vocabulary": 300}).train([b"the token and the token " * 50], 0)
    small, capital, upper = (tokenizer.encode(text).tolist() for text in (b"a token", b"a Token", b"a TOKEN"))
    assert capital == [small[0], CAPITAL[0], *small[1:]]
    assert upper == [small[0], UPPER[0], *small[1:]]


@pytest.mark.parametrize("inner", ["bpe", "unigram", "byte"])
def test_every_inner_tokenizer_works_behind_the_marks(inner: str) -> None:
    tokenizer = Config.read({"inner": inner, "vocabulary": 300}).train([b"Some Text of MANY words. " * 40], 0)
    data = b"MANY Words of \xff\xfe\xfd Text"
    again = type(tokenizer).load(tokenizer.save())
    assert again.decode(tokenizer.encode(data)) == data
