"""Plans of recomputation against brute force, published values and closed forms."""

import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.core.errors import ConfigError
from fairway.train.segmentation import (
    Costs,
    Segment,
    cheapest_segments,
    equal_segments,
    predict,
    revolve_slots,
    revolve_split,
    square_root_size,
)


def costs_of(inputs: list[int], kept: list[int], work: list[float] | None = None) -> Costs:
    return Costs(tuple(inputs), tuple(kept), (0,) * len(kept), tuple(work or [1.0] * len(kept)))


@pytest.mark.parametrize(("count", "total"), [(96, 20), (48, 14), (16, 8), (1, 2)])
def test_the_square_root_size_makes_stretches_plus_blocks_smallest(count: int, total: int) -> None:
    size = square_root_size(count)
    assert math.ceil(count / size) + size == total


@given(count=st.integers(1, 40), size=st.integers(1, 40), keep=st.booleans())
def test_equal_segments_cover_every_block_once(count: int, size: int, keep: bool) -> None:
    segments = equal_segments(count, size, keep)
    assert [index for one in segments for index in range(one.start, one.stop)] == list(range(count))
    assert [one.recompute for one in segments] == [True] * (len(segments) - 1) + [not keep]
    again = sum(one.stop - one.start for one in segments if one.recompute)
    assert again == (count - (segments[-1].stop - segments[-1].start) if keep else count)


def test_the_peak_adds_kept_segments_inputs_and_the_largest_rest() -> None:
    costs = costs_of([1, 2, 4, 8], [10, 20, 40, 80])
    assert predict([Segment(0, 4, False)], costs).bytes == 165
    assert predict([Segment(0, 2), Segment(2, 4)], costs).bytes == (1 + 4) + max(10 + 20 + 2, 40 + 80 + 8)
    assert predict([Segment(0, 2), Segment(2, 4, False)], costs).bytes == 1 + (4 + 40 + 8 + 80) + 32
    assert predict([Segment(0, 2), Segment(2, 4, False)], costs).work == 2.0


def every_plan(count: int, start: int = 0) -> Iterator[list[Segment]]:
    if start == count:
        yield []
    for stop in range(start + 1, count + 1):
        for rest in every_plan(count, stop):
            yield [Segment(start, stop, True), *rest]
            if stop == start + 1:
                yield [Segment(start, stop, False), *rest]


sizes = st.integers(0, 50)


@given(data=st.data(), count=st.integers(1, 6), share=st.floats(0.0, 1.2))
@settings(max_examples=80, deadline=None)
def test_no_plan_beats_the_optimum(data: st.DataObject, count: int, share: float) -> None:
    def draw(strategy: st.SearchStrategy) -> list:
        return data.draw(st.lists(strategy, min_size=count, max_size=count))

    costs = costs_of(draw(sizes), draw(sizes), [float(work) for work in draw(st.integers(1, 9))])
    predictions = [predict(plan, costs) for plan in every_plan(count)]
    least = min(prediction.bytes for prediction in predictions)
    assert predict(cheapest_segments(costs, None), costs).bytes == least
    budget = int(share * predict([Segment(0, count, False)], costs).bytes)
    if budget < least:
        with pytest.raises(ConfigError, match="at least"):
            cheapest_segments(costs, budget)
        return
    found = predict(cheapest_segments(costs, budget), costs)
    assert found.bytes <= budget
    assert found.work == min(prediction.work for prediction in predictions if prediction.bytes <= budget)


def test_a_large_budget_computes_nothing_again() -> None:
    costs = costs_of([5] * 12, [50] * 12)
    assert not any(segment.recompute for segment in cheapest_segments(costs, 12 * 55))


def test_long_chains_are_planned_in_moments() -> None:
    costs = costs_of([10] * 48, [200 + 7 * index % 30 for index in range(48)])
    found = predict(cheapest_segments(costs, None), costs)
    assert found.bytes <= predict(equal_segments(48, square_root_size(48), True), costs).bytes


@pytest.mark.parametrize("slots", range(1, 7))
def test_revolve_meets_its_closed_form(slots: int) -> None:
    for count in range(2, 60):
        repeats = next(r for r in range(1, 60) if math.comb(slots + r, slots) >= count)
        assert revolve_split(count, slots)[0] == repeats * count - math.comb(slots + repeats, slots + 1)


def test_published_numbers_of_slots() -> None:
    assert revolve_slots(96, 2) == 13
    assert revolve_split(96, 1)[0] == 96 * 95 // 2
