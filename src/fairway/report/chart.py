"""Small charts as inline SVG, with colours from the page's style sheet so that they follow its light or dark theme.

Lines, horizontal bars and histograms; no script, no font files. Coordinates are in user units of a fixed view box;
the page scales it to the column.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

WIDE, HALF, THIRD = 960, 456, 290
"""Widths of the view box, near the pixels that a column of the page gives, so that text keeps its size."""
LEFT, RIGHT, TOP, BOTTOM = 76, 12, 14, 42
MOST_POINTS = 600
_SMOOTHING = 0.05
_COLOURS = ("#1f6fb4", "#c2571a", "#2e8b57", "#8a4fb0", "#b8860b", "#c0392b")
_PAPER = (
    "svg{background:#fff;font:13px sans-serif}text{fill:#333}.grid{stroke:#e5e5e5}.axis{stroke:#888}"
    ".mark{stroke:#999;stroke-dasharray:4 4}.line{fill:none;stroke-width:2}"
)


@dataclass(frozen=True)
class Line:
    """One curve: points in order of x, with a name for the legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    """Mark every point, for curves of a few measurements."""


@dataclass(frozen=True)
class Bar:
    """One bar: a name, its length, and what is written beside it."""

    name: str
    value: float
    label: str
    colour: int = 0


@dataclass
class _Frame:
    """Maps data to the view box."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (self.height - TOP - BOTTOM)


def smoothed(name: str, x: Sequence[float], y: Sequence[float]) -> Line:
    """An exponential average over about a twentieth of the points; corrected for its start."""
    rate = max(_SMOOTHING, min(1.0, 20 / max(1, len(y))))
    mean, weight, result = 0.0, 0.0, []
    for value in y:
        if math.isfinite(value):
            mean, weight = (1 - rate) * mean + rate * value, (1 - rate) * weight + rate
        result.append(mean / weight if weight else math.nan)
    return Line(name, x, result)


def lines(
    title: str,
    curves: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    width: int = WIDE,
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
) -> str:
    """Curves over a common x axis. `marks` are horizontal lines at a value, with a text; `from_zero` shows y = 0.

    Points that are not finite are left out; the y axis spans the bulk of the values, so one spike at the start does not
    flatten the rest.
    """
    curves = [_thinned(_finite(curve)) for curve in curves]
    curves = [curve for curve in curves if curve.x]
    if not curves:
        return ""
    xs = [value for curve in curves for value in curve.x]
    ys = [value for curve in curves for value in _bulk(curve)] + [value for value, _ in marks]
    low, high = _padded(min(ys), max(ys))
    first = 0.0 if 0 <= min(xs) < 0.05 * max(xs) else min(xs)
    last = max(xs) if max(xs) > first else first + 1
    frame = _Frame(first, last, 0.0 if from_zero else low, high, width, 300 if width == WIDE else 230)
    _axes(frame, x_label, y_label)
    for value, text in marks:
        y = frame.y(value)
        frame.parts.append(f'<path class="mark" d="M{LEFT} {y:.1f}H{frame.width - RIGHT}"/>')
        frame.parts.append(_text("note", LEFT + 6, y - 6, text))
    for index, curve in enumerate(curves):
        _draw(frame, curve, index)
    return _svg(title, frame, [curve.name for curve in curves] if len(curves) > 1 else [])


def bars(title: str, items: Sequence[Bar]) -> str:
    """Horizontal bars, longest scale common to all, with names on the left and labels on the right."""
    items = [item for item in items if math.isfinite(item.value) and item.value >= 0]
    if not items:
        return ""
    width, row, names, labels = HALF, 27, 130, 142
    height = row * len(items) + 8
    longest = max(item.value for item in items) or 1.0
    parts = []
    for index, item in enumerate(items):
        middle = 4 + row * index + row / 2
        length = max(1.5, item.value / longest * (width - names - labels))
        parts.append(_text("name", names - 12, middle + 4.5, _cut(item.name, 21), "end"))
        parts.append(
            f'<rect class="fill{item.colour % 6}" x="{names}" y="{middle - 8:.1f}" width="{length:.1f}" height="16" '
            f'rx="3"><title>{escape(item.name)}: {escape(item.label)}</title></rect>'
        )
        parts.append(_text("value", names + length + 8, middle + 4.5, item.label))
    return _wrap(title, width, height, parts)


def histogram(title: str, values: np.ndarray, *, bins: int = 58) -> str:
    """How often values occur, over their range without the outermost thousandth on each side."""
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        return ""
    low, high = (float(edge) for edge in np.quantile(values, [0.001, 0.999]))
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
    width, height, base = THIRD, 126, 104
    step = width / bins
    tallest = counts.max()
    columns = "".join(
        f"M{index * step + 0.5:.1f} {base}v{-count / tallest * (base - 8):.1f}h{step - 1:.1f}V{base}z"
        for index, count in enumerate(counts)
        if count
    )
    parts = [f'<path class="fill0" d="{columns}"/>', f'<path class="axis" d="M0 {base}H{width}"/>']
    for x, value, anchor in ((0, low, "start"), (width / 2, (low + high) / 2, "middle"), (width, high, "end")):
        parts.append(_text("tick", x, base + 17, f"{value:.3g}", anchor))
    return _wrap(title, width, height, parts)


def standing_alone(drawing: str) -> str:
    """A drawing as the content of a file of its own, with colours on white instead of the page's."""
    assert drawing.startswith("<svg viewBox")
    width = drawing.split('"', 2)[1].split()[2]
    colours = "".join(f".line{i}{{stroke:{c}}}.fill{i}{{fill:{c}}}" for i, c in enumerate(_COLOURS))
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
    return drawing.replace("<svg ", opening, 1).replace(">", f"><style>{_PAPER}{colours}</style>", 1)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values inside [low, high], about `count` of them, at steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _axes(frame: _Frame, x_label: str, y_label: str) -> None:
    bottom, right = frame.height - BOTTOM, frame.width - RIGHT
    y_ticks, x_ticks = ticks(frame.y_low, frame.y_high), ticks(frame.x_low, frame.x_high, max(5, frame.width // 100))
    for value in y_ticks:
        y = frame.y(value)
        frame.parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        frame.parts.append(_text("tick", LEFT - 9, y + 4, _number(value, y_ticks), "end"))
    for value in x_ticks:
        frame.parts.append(_text("tick", frame.x(value), bottom + 18, _number(value, x_ticks), "middle"))
    frame.parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    frame.parts.append(_text("label", right, frame.height - 5, x_label, "end"))
    middle = (TOP + bottom) / 2
    frame.parts.append(_text("label", 12, middle, y_label, "middle", f' transform="rotate(-90 12 {middle})"'))


def _draw(frame: _Frame, curve: Line, colour: int) -> None:
    points = [
        (frame.x(x), frame.y(min(max(y, frame.y_low), frame.y_high))) for x, y in zip(curve.x, curve.y, strict=True)
    ]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    frame.parts.append(f'<path class="line line{colour % 6}" d="{path}"><title>{escape(curve.name)}</title></path>')
    if curve.dots or len(points) == 1:
        for (x, y), value in zip(points, curve.y, strict=True):
            frame.parts.append(
                f'<circle class="fill{colour % 6}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
                f"<title>{value:.4f}</title></circle>"
            )


def _svg(title: str, frame: _Frame, legend: Sequence[str]) -> str:
    x = float(frame.width - RIGHT)
    for index in reversed(range(len(legend))):
        x -= 7.2 * len(legend[index]) + 34
        frame.parts.append(f'<rect class="fill{index % 6}" x="{x:.1f}" y="{TOP + 4}" width="14" height="4" rx="2"/>')
        frame.parts.append(_text("note", x + 20, TOP + 10, legend[index]))
    return _wrap(title, frame.width, frame.height, frame.parts)


def _text(style: str, x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _wrap(title: str, width: int, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def _finite(curve: Line) -> Line:
    kept = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Line(curve.name, [x for x, _ in kept], [y for _, y in kept], curve.dots)


def _thinned(curve: Line) -> Line:
    """At most `MOST_POINTS` points, each the mean of its neighbours."""
    if len(curve.x) <= MOST_POINTS:
        return curve
    edges = np.linspace(0, len(curve.x), MOST_POINTS + 1).astype(int)
    sizes = np.diff(edges)
    x, y = (np.add.reduceat(np.asarray(values, dtype=np.float64), edges[:-1]) / sizes for values in (curve.x, curve.y))
    return Line(curve.name, x.tolist(), y.tolist(), curve.dots)


def _bulk(curve: Line) -> list[float]:
    """The range that the axis must show: the highest twentieth of a long curve may be cut at the top."""
    values = np.asarray(curve.y)
    top = float(np.quantile(values, 0.95)) if len(values) >= 40 else float(values.max())
    spread = top - float(values.min())
    return [float(values.min()), min(float(values.max()), top + 0.35 * spread)]


def _padded(low: float, high: float) -> tuple[float, float]:
    space = 0.06 * (high - low) or max(0.5 * abs(high), 0.5)
    return low - space, high + space


def _number(value: float, scale: Sequence[float]) -> str:
    step = scale[1] - scale[0] if len(scale) > 1 else 1.0
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
