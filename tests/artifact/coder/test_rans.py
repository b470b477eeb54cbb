"""Interleaved asymmetric numeral systems: the kernel against the definition, and how near to the entropy both come."""

import numpy as np
import pytest

from fairway.artifact import lanes, native_lanes
from fairway.artifact.coder.rans import GRIDS, Rans
from fairway.artifact.native_counts import counts
from fairway.artifact.parts import coder
from fairway.artifact.table import Histogram
from fairway.core.errors import ArtifactError
from laws.levels import EVERY_LEVEL, at_level


def drawn(count: int, alphabet: int) -> np.ndarray:
    return np.minimum(np.random.default_rng(count).geometric(8 / (alphabet + 8), count) - 1, alphabet - 1).astype(
        np.int32
    )


def model(alphabet: int, bits: int) -> lanes.Spans:
    return lanes.spans([2 + (7 * place) % 23 + 5000 // (place + 1) for place in range(alphabet)], bits)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("count", [0, 1, 63, 8193, 8192 * 2 + 5, 8192 * 8 + 17, 270_001])
@pytest.mark.parametrize(("alphabet", "bits"), [(2, 12), (40, 13), (256, 14), (2, 15), (4096, 15)])
def test_the_kernel_writes_and_reads_what_the_definition_does(
    count: int, alphabet: int, bits: int, level: str | None
) -> None:
    places, span = drawn(count, alphabet), model(alphabet, bits)
    states, words = lanes.encode(places, span, bits)
    with at_level(level):
        own_states, own_words = native_lanes.encode(places, span, bits)
        decoded = native_lanes.decode(words, states, count, span, bits)
    assert np.array_equal(own_states, states)
    assert np.array_equal(own_words, words)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, places)
    assert np.array_equal(lanes.decode(words, states, count, span, bits), places)


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_streams_that_do_not_fit_are_refused_on_every_level(level: str | None) -> None:
    places, span = drawn(70_000, 40), model(40, 12)
    states, words = lanes.encode(places, span, 12)
    with at_level(level):
        for wrong in (words[:-1], words[:100], words[:0], np.append(words, np.uint16(7))):
            with pytest.raises(ArtifactError):
                native_lanes.decode(wrong, states, len(places), span, 12)
        for count in (69_999, 70_001):
            with pytest.raises(ArtifactError):
                native_lanes.decode(words, states, count, span, 12)


@pytest.mark.parametrize("bits", [12, 15])
@pytest.mark.parametrize("weights", [[1, 1], [10**9, 1, 1], [1] * 200, list(range(1, 257)), [2**56] + [1] * 255])
def test_spans_fill_the_grid_and_leave_no_symbol_out(weights: list[int], bits: int) -> None:
    span = lanes.spans(weights, bits)
    assert int(span.sum()) == 1 << bits
    assert int(span.min()) >= 1
    exact = np.array(weights, np.float64) / sum(weights) * (1 << bits)
    assert np.abs(span[exact >= 1] - exact[exact >= 1]).max() <= len(weights)


def test_a_million_weights_take_hardly_more_than_their_entropy() -> None:
    random = np.random.default_rng(5)
    for deviation in (0.6, 2.7, 8.8, 200.0):
        symbols = np.rint(random.normal(size=1_000_000) * deviation).astype(np.int32)
        size, entropy = len(Rans().encode(symbols)), Histogram.of(symbols).entropy() / 8
        states = 3 * lanes.MOST_LANES
        assert size - states <= 1.0004 * entropy + 100
        assert size - states <= 1.0003 * len(coder("ans").encode(symbols)) + 100


@pytest.mark.parametrize("grid", [0, 11, 16, 255])
def test_a_grid_that_no_encoder_writes_is_refused(grid: int) -> None:
    symbols = drawn(500, 4000) - 2000
    data = bytearray(Rans().encode(symbols))
    place = next(at for at in range(len(data)) if data[at] in GRIDS and _decodes_without(data, at))
    data[place] = grid
    with pytest.raises(ArtifactError, match="grid"):
        Rans().decode(bytes(data), len(symbols))


def _decodes_without(data: bytearray, at: int) -> bool:
    """Whether the byte at `at` is the grid: another value there is refused as one."""
    wrong = bytearray(data)
    wrong[at] = 99
    try:
        Rans().decode(bytes(wrong), 500)
    except ArtifactError as error:
        return "grid" in str(error)
    return False


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("count", [1, 4095, 4096, 20_003])
@pytest.mark.parametrize(("low", "high"), [(0, 0), (-7, 5), (-20_000, 20_000), (-(2**31), -(2**31) + 9)])
def test_every_number_is_counted_once(low: int, high: int, count: int, level: str | None) -> None:
    symbols = np.random.default_rng(count).integers(low, high + 1, count).astype(np.int32)
    symbols[[0, -1]] = low, high if count > 1 else low
    values, times = np.unique(symbols, return_counts=True)
    with at_level(level):
        found = counts(symbols, low, high)
    assert found.dtype == np.int64
    assert len(found) == high - low + 1
    assert np.array_equal(np.flatnonzero(found) + low, values)
    assert np.array_equal(found[found > 0], times)
