"""Every coder gives back exactly what it was given, in few bytes, and refuses bytes that are not its own."""

from contextlib import suppress

import numpy as np
import pytest

from fairway.artifact.parts import CODERS, Coder, coder
from fairway.artifact.table import Histogram
from fairway.core.errors import ArtifactError

KINDS = CODERS.kinds()


def vectors() -> dict[str, np.ndarray]:
    """Vectors of every kind that compression makes, and some that it does not."""
    random = np.random.default_rng(7)
    floats = {
        "gaussian": random.normal(size=20_000) * 2.5,
        "wide": random.normal(size=4_000) * 900,
        "ternary": random.integers(-1, 2, 10_000),
        "rare": random.random(10_000) < 0.02,
        "skewed": random.geometric(0.6, 5_000),
        "bytes": random.integers(0, 256, 3_000),
        "gapped": random.choice([-1000, 3, 70_000], 500),
        "constant": np.full(1_000, -4),
        "one": np.array([12]),
        "none": np.zeros(0),
        "extreme": np.array([-(2**31), 2**31 - 1, 0, 0, 0]),
        "distinct": np.arange(-5_000, 5_000),
        "any": random.integers(-(2**31), 2**31, 300),
    }
    return {name: np.rint(values).astype(np.int32) for name, values in floats.items()}


def assert_lossless(candidate: Coder, symbols: np.ndarray) -> None:
    decoded = candidate.decode(candidate.encode(symbols), len(symbols))
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, symbols)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", vectors())
def test_what_is_decoded_is_what_was_encoded(kind: str, name: str) -> None:
    assert_lossless(coder(kind), vectors()[name])


def test_the_law_catches_a_coder_that_loses_the_last_symbol() -> None:
    class Forgetful(Coder):
        def estimate(self, values: np.ndarray, counts: np.ndarray) -> float:  # noqa: ARG002
            return float(32 * counts.sum())

        def encode(self, symbols: np.ndarray) -> bytes:
            return symbols[:-1].tobytes()

        def decode(self, data: bytes, count: int) -> np.ndarray:
            found = np.frombuffer(data, np.int32)
            return np.concatenate((found, np.zeros(count - len(found), np.int32)))

    with pytest.raises(AssertionError):
        assert_lossless(Forgetful(), vectors()["gaussian"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_symbols_give_the_same_bytes(kind: str) -> None:
    symbols = vectors()["gaussian"]
    assert coder(kind).encode(symbols) == coder(kind).encode(symbols.copy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gaussian", "ternary", "skewed"])
def test_the_bytes_are_near_the_entropy(kind: str, name: str) -> None:
    """Within 0.1 % and a table for arithmetic coders; within one bit a symbol for Huffman codes."""
    symbols = np.tile(vectors()[name], 10)
    entropy = Histogram.of(symbols).entropy() / 8
    size = len(coder(kind).encode(symbols))
    allowed = entropy + len(symbols) / 8 if kind == "huffman" else 1.001 * entropy
    assert entropy * 0.999 <= size <= allowed + 64


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_from_frequencies_is_within_one_per_cent(kind: str) -> None:
    for name in ("gaussian", "wide", "ternary", "skewed"):
        histogram = Histogram.of(vectors()[name])
        estimate = coder(kind).estimate(histogram.values, histogram.counts) / 8
        assert estimate == pytest.approx(len(coder(kind).encode(vectors()[name])), rel=0.01, abs=8)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_streams_are_refused_or_give_as_many_symbols_as_asked_for(kind: str) -> None:
    """A coder alone cannot see every flipped bit (the artifact's checksum does), but nothing else may
    escape it.
    """
    random = np.random.default_rng(3)
    for name in ("gaussian", "wide", "gapped", "constant", "rare"):
        symbols = vectors()[name][:500]
        data = bytearray(coder(kind).encode(symbols))
        for _ in range(60):
            broken = bytearray(data)
            broken[random.integers(len(broken))] ^= 1 << random.integers(8)
            broken = broken[: random.integers(len(broken) + 1)] if random.random() < 0.3 else broken
            try:
                assert len(coder(kind).decode(bytes(broken), len(symbols))) == len(symbols)
            except ArtifactError:
                continue


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 40, bytes(range(64))])
def test_foreign_bytes_never_escape_as_another_error(kind: str, data: bytes) -> None:
    with suppress(ArtifactError):
        assert len(coder(kind).decode(data, 100)) == 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [-10_000, -1, 1, 2, 7, 8, 100])
def test_a_wrong_count_of_symbols_is_noticed(kind: str, error: int) -> None:
    for name in ("gaussian", "rare", "skewed", "wide"):
        symbols = vectors()[name]
        data = coder(kind).encode(symbols)
        with pytest.raises(ArtifactError):
            coder(kind).decode(data, max(1, len(symbols) + error))
