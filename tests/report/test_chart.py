import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fairway.report.chart import HALF, WIDE, Bar, Line, bars, histogram, lines, ticks


def numbers(path: str) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split())) for point in path.strip("M").split("L")]  # pyrefly: ignore[bad-return]


def drawn(svg: str) -> list[ElementTree.Element]:
    return [element for element in ElementTree.fromstring(svg).iter() if element.get("class", "").startswith("line")]


def test_a_straight_line_is_drawn_straight_and_upwards():
    points = numbers(drawn(lines("t", [Line("a", [0, 1, 2], [0, 1, 2])], "x", "y"))[0].attrib["d"])
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2
    assert y0 > y1 > y2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)


def test_everything_drawn_lies_inside_the_view_box():
    noisy = [5 + math.sin(step) for step in range(500)]
    svg = lines("t", [Line("a", range(500), noisy), Line("b", [10, 400], [4.5, 5.5], dots=True)], "x", "y")
    width, height = map(float, ElementTree.fromstring(svg).attrib["viewBox"].split()[2:])
    for curve in drawn(svg):
        for x, y in numbers(curve.attrib["d"]):
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_values_that_are_not_numbers_are_left_out_and_nothing_else():
    svg = lines("t", [Line("a", [0, 1, 2, 3], [1.0, math.nan, math.inf, 2.0])], "x", "y")
    assert len(numbers(drawn(svg)[0].attrib["d"])) == 2
    assert "nan" not in svg
    assert "inf" not in svg


def test_a_chart_without_points_is_empty():
    assert lines("t", [Line("a", [], []), Line("b", [1.0], [math.nan])], "x", "y") == ""
    assert bars("t", []) == ""
    assert histogram("t", np.array([])) == ""


def test_long_curves_are_thinned_to_means():
    points = numbers(drawn(lines("t", [Line("a", range(6000), [3.0] * 6000)], "x", "y"))[0].attrib["d"])
    assert len(points) == 600
    assert len({y for _, y in points}) == 1


def test_a_single_point_and_a_constant_curve_can_be_drawn():
    assert "<circle" in lines("t", [Line("a", [1.0], [2.0])], "x", "y")
    assert "<path" in lines("t", [Line("a", [1.0, 2.0], [0.0, 0.0])], "x", "y")


def test_a_spike_at_the_start_does_not_flatten_the_rest():
    values = [1000.0] + [2.0 + 0.01 * step for step in range(100)]
    points = numbers(drawn(lines("t", [Line("a", range(101), values)], "x", "y"))[0].attrib["d"])
    assert points[1][1] - points[100][1] > 100


def test_from_zero_shows_where_zero_is():
    svg = lines("t", [Line("a", [0, 1], [90.0, 100.0])], "x", "y", width=HALF, from_zero=True)
    assert ">0</text>" in svg
    assert ">0</text>" not in lines("t", [Line("a", [1, 2], [90.0, 100.0])], "x", "y", width=WIDE)


def test_names_cannot_break_out_of_the_picture():
    hostile = "</svg><script>alert(1)</script>"
    for svg in (
        lines(hostile, [Line(hostile, [0, 1], [0, 1]), Line("b", [0], [1])], hostile, hostile, marks=[(1.0, hostile)]),
        bars(hostile, [Bar(hostile, 1.0, hostile)]),
        histogram(hostile, np.arange(9.0)),
    ):
        assert "<script" not in svg
        ElementTree.fromstring(svg)


def test_bars_are_as_long_as_their_values():
    svg = bars("t", [Bar("a", 4.0, "4 s"), Bar("b", 1.0, "1 s")])
    long, short = (float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', svg))
    assert long == pytest.approx(4 * short, rel=0.01)


def test_a_histogram_has_the_heights_of_its_counts():
    svg = histogram("t", np.repeat([0.0, 1.0], [300, 100]), bins=2)
    heights = [float(height) for height in re.findall(r"v-([\d.]+)", svg)]
    assert heights[0] == pytest.approx(3 * heights[1], rel=0.01)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.93, 5.2), (-3e-4, 2e-4), (120.0, 98_000.0)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low - 1e-9 * (high - low) <= value <= high + 1e-9 * (high - low) for value in found)
    step = found[1] - found[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)
