"""Streaming: whole characters, and nothing of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairway.core.errors import ConfigError
from fairway.serve.generate import characters, until
from fairway.serve.model import Model


@given(st.binary(max_size=60), st.data())
def test_cutting_bytes_anywhere_gives_the_text_of_all_of_them(data: bytes, draw: st.DataObject) -> None:
    pieces, rest = [], data
    while rest:
        size = draw.draw(st.integers(1, 3))
        pieces.append(rest[:size])
        rest = rest[size:]
    assert "".join(characters(iter(pieces))) == data.decode("utf-8", "replace")


def test_a_character_comes_when_it_is_whole() -> None:
    assert list(characters(iter([b"a", b"\xc3", b"\xb6", b"\xe2\x82", b"\xac!"]))) == ["a", "ö", "€!"]
    assert list(characters(iter([b"a", b"\xe2\x82"]))) == ["a", "\ufffd"]


@given(st.lists(st.text("ab.", max_size=3), max_size=12), st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(pieces: list[str], stop: list[str]) -> None:
    whole = "".join(pieces)
    ends = [whole.find(ending) for ending in stop if ending in whole]
    assert "".join(until(iter(pieces), stop)) == whole[: min(ends, default=len(whole))]


def test_what_may_begin_a_stop_string_is_held_back_and_then_given() -> None:
    assert list(until(iter(["x#", "#", "y"]), ["###"])) == ["x", "##y"]


def test_generation_stops_before_a_stop_string(model: Model) -> None:
    whole = "".join(model.generate("hello", tokens=40, seed=1))
    stop = whole[10:13]
    assert "".join(model.generate("hello", tokens=40, seed=1, stop=[stop])) == whole[: whole.find(stop)]


def test_the_same_seed_writes_the_same_text_piece_by_piece(model: Model) -> None:
    pieces = list(model.generate("hello", tokens=30, seed=5))
    assert pieces == list(model.generate("hello", tokens=30, seed=5))
    assert len(pieces) > 3
    assert pieces != list(model.generate("hello", tokens=30, seed=6))


def test_generation_ends_at_the_boundary_and_at_the_count(model: Model) -> None:
    assert "".join(model.generate("hello", tokens=0)) == ""
    lengths = [
        len(model.tokenizer.encode("".join(model.generate(tokens=200, seed=seed)).encode())) for seed in range(8)
    ]
    assert min(lengths) < 200


@pytest.mark.parametrize(
    "wrong",
    [{"tokens": -1}, {"stop": [""]}, {"temperature": -2}, {"temprature": 1}],
)
def test_what_cannot_be_generated_is_refused(model: Model, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        model.generate("hello", **wrong)  # pyrefly: ignore[bad-argument-type]
