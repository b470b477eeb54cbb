"""Interleaved asymmetric numeral systems: the kernel against the definition, and how near to the entropy both come."""

import numpy as np
import pytest

from fairway.artifact import lanes, native_lanes
from fairway.artifact.coder.rans import GRIDS, Rans, best_grid, grid_of
from fairway.artifact.native_counts import counts
from fairway.artifact.parts import coder
from fairway.artifact.table import Histogram, fit_table, split
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
@pytest.mark.parametrize(("alphabet", "bits"), [(2, 12), (40, 13), (100, 12), (256, 14), (2, 15), (4096, 15)])
def test_the_kernel_writes_and_reads_what_the_definition_does(
    count: int, alphabet: int, bits: int, level: str | None
) -> None:
    places, span = drawn(count, alphabet), model(alphabet, bits)
    states, words, _ = lanes.encode(places, span, bits)
    with at_level(level):
        own_states, own_words, _ = native_lanes.encode(places, span, bits)
        decoded = native_lanes.decode(words, states, count, span, bits)
    assert np.array_equal(own_states, states)
    assert np.array_equal(own_words, words)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, places)
    assert np.array_equal(lanes.decode(words, states, count, span, bits), places)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("count", [1, 63, 8192 * 2 + 5, 8192 * 8 + 17, 270_001])
@pytest.mark.parametrize(("alphabet", "bits"), [(20, 12), (60, 13), (90, 13), (200, 13), (4096, 14)])
def test_rare_places_are_handed_out_and_put_back(count: int, alphabet: int, bits: int, level: str | None) -> None:
    places, random = drawn(count, alphabet), np.random.default_rng(0)
    stand_in = alphabet // 2
    span = model(alphabet, bits)
    hidden = np.arange(stand_in + 1, alphabet, 2)
    span[stand_in] += span[hidden].sum()
    span[hidden] = 0
    places[random.random(count) < 0.01] = hidden[0]
    states, words, rare = lanes.encode(places, span, bits, stand_in)
    assert np.array_equal(rare, places[np.isin(places, hidden) | (places == stand_in)])
    with at_level(level):
        own_states, own_words, own_rare = native_lanes.encode(places, span, bits, stand_in)
        for other in (rare[:-1], np.append(rare, np.int32(0))):
            if len(rare):
                with pytest.raises(ArtifactError):
                    native_lanes.decode(words, states, count, span, bits, other, stand_in)
        decoded = native_lanes.decode(words, states, count, span, bits, rare, stand_in)
    assert np.array_equal(own_states, states)
    assert np.array_equal(own_words, words)
    assert np.array_equal(own_rare, rare)
    assert np.array_equal(decoded, places)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("first", [-(2**31), -1001, 2**31 - 300])
@pytest.mark.parametrize(("alphabet", "lanes_filled"), [(20, 64), (60, 64), (100, 32), (128, 64), (250, 64), (299, 16)])
def test_places_may_count_from_any_number_and_have_gaps(
    alphabet: int, lanes_filled: int, first: int, level: str | None
) -> None:
    count = 4096 * lanes_filled + 3
    symbols, span = 2 * drawn(count, alphabet // 2), np.zeros(alphabet, np.uint32)
    span[::2] = model(-(-alphabet // 2), 12)
    shown, stand_in = symbols + np.int32(first), 6
    span[6], span[8] = span[6] + span[8], 0
    states, words, rare = lanes.encode(symbols, span, 12, stand_in)
    with at_level(level):
        own_states, own_words, own_rare = native_lanes.encode(shown, span, 12, stand_in, first)
        decoded = native_lanes.decode(words, states, count, span, 12, own_rare, stand_in, first)
    assert len(rare) > 0
    assert np.array_equal(own_rare, rare + np.int32(first))
    assert np.array_equal(own_states, states)
    assert np.array_equal(own_words, words)
    assert np.array_equal(decoded, shown)


@pytest.mark.parametrize("factor", [1, 3, 5000])
def test_symbols_with_gaps_take_no_more_than_their_places(factor: int) -> None:
    places = np.rint(np.random.default_rng(2).normal(size=300_000) * 4).astype(np.int32)
    plain, wide = Rans().encode(places), Rans().encode(places * factor - 7)
    assert abs(len(wide) - len(plain)) < 100
    assert np.array_equal(Rans().decode(wide, len(places)), places * factor - 7)


def test_rare_symbols_share_a_place_where_that_is_shorter() -> None:
    weights = [(400_000 >> abs(place - 40)) // 3 + 1 for place in range(81)]
    counts = np.array(weights)
    best = best_grid(weights, counts)
    rare = best.rare_R.tolist()
    assert best.stand_in == 0
    assert set(rare) == {place for place in range(81) if weights[place] << best.bits < sum(weights)}
    assert int(best.span_S.sum()) == 1 << best.bits
    assert not best.span_S[rare[1:]].any()
    assert grid_of([5, 5, 1], 12, share=True) is None
    symbols = np.repeat(np.arange(81, dtype=np.int32) - 40, weights)
    np.random.default_rng(0).shuffle(symbols)
    coded = Rans().encode(symbols)
    assert np.array_equal(Rans().decode(coded, len(symbols)), symbols)
    for end in range(30, len(coded), len(coded) // 25):
        with pytest.raises(ArtifactError):
            Rans().decode(coded[:end], len(symbols))


def test_a_stream_of_before_rare_symbols_shared_a_place_is_still_read() -> None:
    symbols = np.rint(np.random.default_rng(0).normal(size=30_000) * 3).astype(np.int32)
    table, _ = fit_table(Histogram.of(symbols))
    places, low = split(symbols, table)
    assert not low
    states, words, _ = lanes.encode(places, lanes.spans(table.weights(), 14), 14)
    old = table.serialise() + bytes((14,)) + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()
    assert np.array_equal(Rans().decode(old, len(symbols)), symbols)


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_streams_that_do_not_fit_are_refused_on_every_level(level: str | None) -> None:
    places, span = drawn(70_000, 40), model(40, 12)
    states, words, _ = lanes.encode(places, span, 12)
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
        assert size - states <= 1.0002 * entropy + 100
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
