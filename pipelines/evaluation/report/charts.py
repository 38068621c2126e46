"""Charts as inline SVG: axes, bands, tooltips (`<title>`), colours by CSS class so that light and dark both work.

One frame is 360 units wide and is shown at about that width, so its text is as large as the page's on a phone as on a desk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pipelines.evaluation.report.html import Html, el, join, number

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 36
HOVERS = 40
"""Most tooltips along a dense line."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line. colour: a CSS class. band: (low, high) at each point. faint: a rougher line drawn behind."""

    name: str
    colour: str
    points: list[Point]
    band: list[Point] = field(default_factory=list)
    faint: list[Point] = field(default_factory=list)
    dots: bool = False


@dataclass(frozen=True)
class Scale:
    """Data to pixels, linear or by powers of two."""

    low: float
    high: float
    start: float
    end: float
    binary: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log2(v) for v in (self.low, self.high, value)) if self.binary else (self.low, self.high, value)
        return self.start + (self.end - self.start) * ((at - low) / (high - low) if high > low else 0.5)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick(value: float) -> str:
    """A round number without needless zeros."""
    return f"{value:,.10g}".replace("-", "−")


def line_chart(
    title: str, series: Sequence[Series], x_label: str, *, y_range: Point | None = None, binary: bool = False, mark: float | None = None
) -> Html:
    """Lines over a common x, y from the data unless `y_range` is given; `mark` draws a vertical reference line."""
    drawn = [s for s in series if s.points]
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in (*s.points, *s.faint)] + [y for s in drawn for pair in s.band for y in pair]
    y_ticks = ticks(*y_range) if y_range else ticks(min(ys), max(ys))
    x_ticks = sorted(set(xs)) if binary else [t for t in ticks(min(xs), max(xs)) if min(xs) <= t <= max(xs)]
    x = Scale(min(xs), max(xs), LEFT + (12 if binary else 0), WIDTH - RIGHT - (12 if binary else 0), binary)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    body = [_y_axis(y, y_ticks), x_axis(x, x_ticks, x_label)]
    body += [el("line", x1=_r(x(mark)), x2=_r(x(mark)), y1=TOP, y2=HEIGHT - BOTTOM, class_="mark")] if mark is not None else []
    body += [_band(s, x, y) for s in drawn if s.band]
    body += [el("path", d=_path(s.faint, x, y), class_=f"faint {s.colour}") for s in drawn if s.faint]
    body += [el("path", d=_path(s.points, x, y), class_=f"line {s.colour}") for s in drawn]
    body += [_dots(s, x, y, x_label) for s in drawn if s.dots]
    body += [] if any(s.dots for s in drawn) else [_hovers(drawn, x, x_label)]
    return frame(title, HEIGHT, *body)


def frame(title: str, height: float, *body: Html) -> Html:
    """A titled figure around one SVG."""
    svg = el("svg", *body, viewBox=f"0 0 {WIDTH} {_r(height)}", role="img", aria_label=title)
    return el("figure", el("figcaption", title), svg, class_="chart")


def histogram(title: str, groups: Sequence[tuple[str, str, dict[float, int]]], x_label: str, width: float) -> Html:
    """Stacked bars; groups of (name, CSS class, {centre: count}), bars `width` wide in units of x, x from 0 to 1."""
    centres = sorted({centre for _, _, counts in groups for centre in counts})
    most = max(sum(counts.get(c, 0) for _, _, counts in groups) for c in centres)
    y_ticks = ticks(0, most)
    y = Scale(0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    x = Scale(-width / 2, 1 + width / 2, LEFT, WIDTH - RIGHT)
    bars = []
    for centre in centres:
        below = 0
        for name, colour, counts in groups:
            if count := counts.get(centre, 0):
                bar = {"x": _r(x(centre - width * 0.44)), "width": _r(x(centre + width * 0.44) - x(centre - width * 0.44))}
                bar |= {"y": _r(y(below + count)), "height": _r(y(below) - y(below + count))}
                bars.append(el("rect", el("title", f"{x_label} {number(centre)}: {count} {name}"), class_=f"bar {colour}", rx=1.5, **bar))
                below += count
    return frame(title, HEIGHT, _y_axis(y, y_ticks), x_axis(x, [0, 0.25, 0.5, 0.75, 1], x_label), *bars)


def stacked(title: str, bars: Sequence[tuple[str, float, float, Sequence[tuple[str, str, int]]]], x_label: str) -> Html:
    """Bars of one height, cut by the share of each count: (name, from, to, [(name, CSS class, count)])."""
    x, y = Scale(bars[0][1], bars[-1][2], LEFT, WIDTH - RIGHT), Scale(0, 1, HEIGHT - BOTTOM, TOP)
    drawn = []
    for name, start, end, counts in bars:
        total, below = sum(count for _, _, count in counts), 0
        for part, colour, count in counts:
            if count:
                box = {"x": _r(x(start)), "width": _r(max(x(end) - x(start) - 0.5, 0.5))}
                box |= {"y": _r(y((below + count) / total)), "height": _r(y(below / total) - y((below + count) / total))}
                drawn.append(el("rect", el("title", f"{name}: {count} of {total} {part}"), class_=f"bar {colour}", **box))
                below += count
    marks = [t for t in ticks(x.low, x.high) if x.low <= t <= x.high]
    return frame(title, HEIGHT, _y_axis(y, [0, 0.25, 0.5, 0.75, 1]), x_axis(x, marks, x_label), *drawn)


@dataclass(frozen=True)
class Whisker:
    """A mean with its interval on one row."""

    label: str
    colour: str
    mean: float
    low: float
    high: float


def whiskers(title: str, rows: Sequence[Whisker], *, x_range: Point | None = None, label_width: int = 92, mark: float | None = None) -> Html:
    """Dots with intervals, one row each; `mark` draws a vertical reference line."""
    values = [v for row in rows for v in (row.low, row.high)] + ([mark] if mark is not None else [])
    x_ticks = ticks(*(x_range or (min(values), max(values))))
    row_height, top = 24, 6
    bottom = top + row_height * len(rows)
    x = Scale(x_ticks[0], x_ticks[-1], label_width, WIDTH - 18)
    body = [el("line", x1=_r(x(t)), x2=_r(x(t)), y1=top, y2=bottom, class_="grid") for t in x_ticks]
    body += [el("text", tick(t), x=_r(x(t)), y=bottom + 15, class_="tick middle") for t in x_ticks]
    if mark is not None:
        body.append(el("line", x1=_r(x(mark)), x2=_r(x(mark)), y1=top, y2=bottom, class_="mark"))
    for i, row in enumerate(rows):
        middle = top + row_height * (i + 0.5)
        tip = el("title", f"{row.label}: {number(row.mean)}, 95 % interval {number(row.low)} to {number(row.high)}")
        body += [
            el("text", _short(row.label, label_width), x=label_width - 10, y=middle + 4, class_="label end"),
            el("line", tip, x1=_r(x(row.low)), x2=_r(x(row.high)), y1=middle, y2=middle, class_=f"whisker {row.colour}"),
            el("circle", tip, cx=_r(x(row.mean)), cy=middle, r=5, class_=f"dot {row.colour}"),
        ]
    return frame(title, bottom + 22, *body)


def reliability(title: str, colour: str, bins: Sequence[Mapping[str, float]]) -> Html:
    """Stated confidence against accuracy with its interval, beside the diagonal; the area of a dot is its share of the responses."""
    marks = [0, 0.25, 0.5, 0.75, 1.0]
    x, y = Scale(0, 1, LEFT + 8, WIDTH - RIGHT - 8), Scale(0, 1, HEIGHT - BOTTOM, TOP)
    body = [_y_axis(y, marks), x_axis(x, marks, "stated confidence")]
    body.append(el("line", x1=_r(x(0)), y1=_r(y(0)), x2=_r(x(1)), y2=_r(y(1)), class_="mark"))
    body.append(el("path", d=_path([(one["confidence"], one["accuracy"]) for one in bins], x, y), class_=f"faint {colour}"))
    most = max(one["responses"] for one in bins)
    for one in bins:
        at, radius = _r(x(one["confidence"])), _r(3 + 4 * math.sqrt(one["responses"] / most))
        interval = f"95 % interval {number(one['low'])} to {number(one['high'])}, {number(one['responses'])} responses"
        tip = el("title", f"confidence {number(one['confidence'])}: {number(one['accuracy'])} correct, {interval}")
        body.append(el("line", tip, x1=at, x2=at, y1=_r(y(one["low"])), y2=_r(y(one["high"])), class_=f"whisker {colour}"))
        body.append(el("circle", tip, cx=at, cy=_r(y(one["accuracy"])), r=radius, class_=f"dot {colour}"))
    return frame(title, HEIGHT, *body)


def _short(label: str, width: int) -> str:
    """A label cut to what fits."""
    fits = int((width - 10) / 6.6)
    return label if len(label) <= fits else label[: fits - 1] + "…"


def _y_axis(y: Scale, marks: Sequence[float]) -> Html:
    lines = [el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_r(y(t)), y2=_r(y(t)), class_="axis" if t == marks[0] else "grid") for t in marks]
    return join([*lines, *(el("text", tick(t), x=LEFT - 7, y=_r(y(t) + 4), class_="tick end") for t in marks)])


def x_axis(x: Scale, marks: Sequence[float], label: str) -> Html:
    """Numbers at the marks below a chart of the usual height, and what they are of."""
    numbers = [el("text", tick(t), x=_r(x(t)), y=HEIGHT - BOTTOM + 15, class_="tick middle") for t in marks]
    return join([*numbers, el("text", label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, class_="axis-label middle")])


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{_r(x(a))} {_r(y(b))}" for a, b in points)


def _band(s: Series, x: Scale, y: Scale) -> Html:
    """The area between the lows and the highs."""
    places = [a for a, _ in s.points]
    edge = [*zip(places, (low for low, _ in s.band), strict=True), *reversed([*zip(places, (high for _, high in s.band), strict=True)])]
    return el("path", d=_path(edge, x, y) + "Z", class_=f"band {s.colour}")


def _dots(s: Series, x: Scale, y: Scale, x_label: str) -> Html:
    marks = []
    for i, (a, b) in enumerate(s.points):
        interval = f", 95 % interval {number(s.band[i][0])} to {number(s.band[i][1])}" if s.band else ""
        tip = el("title", f"{s.name}, {x_label} {number(a)}: {number(b)}{interval}")
        marks.append(el("circle", tip, cx=_r(x(a)), cy=_r(y(b)), r=3.5, class_=f"dot {s.colour}"))
    return join(marks)


def _hovers(drawn: Sequence[Series], x: Scale, x_label: str) -> Html:
    """Invisible columns whose tooltip tells every line's value there."""
    places = sorted({a for s in drawn for a, _ in s.points})
    places = places[:: max(1, math.ceil(len(places) / HOVERS))]
    edges = [x.start, *((x(a) + x(b)) / 2 for a, b in pairwise(places)), x.end]
    columns = []
    for place, start, end in zip(places, edges, edges[1:], strict=False):
        near = [(s.name, min(s.points, key=lambda p, at=place: abs(p[0] - at))[1]) for s in drawn]
        tip = el("title", f"{x_label} {number(place, 5)}\n" + "\n".join(f"{name}: {number(value)}" for name, value in near))
        columns.append(el("rect", tip, x=_r(start), width=_r(max(end - start, 0)), y=TOP, height=HEIGHT - TOP - BOTTOM, class_="hover"))
    return join(columns)


def _r(value: float) -> str:
    """A coordinate: a tenth of a pixel is enough."""
    return f"{value:.1f}".rstrip("0").rstrip(".")
