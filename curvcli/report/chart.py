"""Curves and their bands: as braille for terminals and Markdown, as SVG for HTML."""

import math
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from curvcli.errors import printable
from curvcli.report.axis import ticks
from curvcli.report.colours import CURVES
from curvcli.report.data import Chart, Series
from curvcli.report.names import cut_names

_COLUMNS, _HEIGHT = 72, 10
_EMPTY = 0x2800
# Pixels of a letter of a legend, most of which are narrower.
_LETTER = 9
# Bit of each dot of a braille character, by (column, row).
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


class Row(NamedTuple):
    """One line of a drawing: its label, and characters with the number of their curve (-1: none)."""

    label: str
    cells: list[tuple[str, int]]


class Drawing(NamedTuple):
    """A chart as lines of text."""

    heading: str
    """What the vertical axis is, above it."""
    rows: list[Row]
    axis: list[str]
    """The horizontal axis with its ticks, their labels, and what it is."""
    indent: int


class _Frame(NamedTuple):
    """The ranges that are shown, after taking logarithms where asked."""

    x0: float
    x1: float
    y0: float
    y1: float


def draw(chart: Chart, columns: int = _COLUMNS, height: int = _HEIGHT) -> Drawing:
    """The curves as braille characters, later ones dotted and behind the first.

    Args:
        chart: any.
        columns: characters in all, with the labels of the vertical axis.
        height: lines of the curves.
    """
    frame = _frame(chart)
    labels = {
        round((1 - _share(place, frame.y0, frame.y1)) * (height - 1)): label
        for place, label in ticks(frame.y0, frame.y1, height // 2, chart.log_y)
    }
    indent = max(map(len, labels.values())) + 2
    width = max(10, columns - indent)
    bits = [[0] * width for _ in range(height)]
    owner = [[-1] * width for _ in range(height)]
    for index in reversed(range(len(chart.series))):
        dotted = index and chart.series[index].mark == "line"
        for step, (column, line) in enumerate(_pixels(chart, index, frame, 2 * width, 4 * height)):
            if dotted and step % 4 > 1:
                continue
            bits[line // 4][column // 2] |= _DOTS[column % 2][line % 4]
            owner[line // 4][column // 2] = index
        for column, line in _edges(chart, index, frame, 2 * width, 4 * height):
            bits[line // 4][column // 2] |= _DOTS[column % 2][line % 4]
            owner[line // 4][column // 2] = max(owner[line // 4][column // 2], index)
    rows = []
    for i in range(height):
        cells = [(chr(_EMPTY + b) if b else " ", o) for b, o in zip(bits[i], owner[i], strict=True)]
        sign = "┤" if i in labels else "│"
        rows.append(Row(f"{labels.get(i, ''):>{indent - 2}} {sign}", cells))
    return Drawing(
        axis_name(chart.y_label, chart.log_y),
        rows,
        _horizontal(chart, frame, indent, width),
        indent,
    )


def axis_name(label: str, log: bool) -> str:
    """What an axis shows, and that it is logarithmic."""
    name = printable(label)
    return f"{name} (log scale)".strip() if log else name


def _horizontal(chart: Chart, frame: _Frame, indent: int, width: int) -> list[str]:
    """A line with ticks, a line with their labels, and the name of the axis below its middle."""
    line, labels = ["─"] * width, ""
    for place, label in ticks(frame.x0, frame.x1, max(3, width // 10), chart.log_x):
        column = round(_share(place, frame.x0, frame.x1) * (width - 1))
        # Under its tick, as far as the ends allow.
        start = min(max(0, column - len(label) // 2), max(0, width - len(label)))
        if labels and start <= len(labels):
            continue
        line[column] = "┬"
        labels = labels.ljust(start) + label
    name = axis_name(chart.x_label, chart.log_x)
    return [
        " " * (indent - 1) + "└" + "".join(line),
        " " * indent + labels,
        below(name, indent, width),
    ]


def below(name: str, indent: int, width: int) -> str:
    """The name of an axis below its middle, within the screen; cut where it is longer than that.

    >>> below("step", 2, 8), below("a long name", 4, 8), below("a long name", 2, 8)
    ('    step', ' a long name', 'a long na…')
    """
    room = indent + width
    if len(name) <= width:
        return (" " * indent + name.center(width)).rstrip()
    return name.rjust(room) if len(name) <= room else f"{name[: room - 1]}…"


def _share(value: float, low: float, high: float) -> float:
    """Where ``value`` lies between both ends, in [0, 1]."""
    return (value - low) / (high - low or 1.0)


def as_text(chart: Chart) -> str:
    """The drawing without colours, with a legend."""
    drawing = draw(chart)
    lines = [row.label + "".join(c for c, _ in row.cells) for row in drawing.rows]
    legend = "   ".join(
        f"{'━━' if i == 0 else '··'} {printable(s.name)}" for i, s in enumerate(chart.series)
    )
    head = [drawing.heading] if drawing.heading else []
    return "\n".join([*head, *lines, *drawing.axis, " " * drawing.indent + legend])


def svg(chart: Chart, width: int = 640, height: int = 310) -> str:
    """The curves as inline SVG."""
    frame = _frame(chart)
    left, top, bottom = 70, 20, height - 60
    legend = _legend([series.name for series in chart.series], left + 10, width)
    whole = height + max((y for _, y, _ in legend), default=0)
    parts = [
        f'<svg viewBox="0 0 {width} {whole}" width="{width}" role="img" '
        f'aria-label="{escape(printable(chart.title), quote=True)}">',
        f'<path d="M{left} {top}V{bottom}H{width - 10}" fill="none" stroke="currentColor" opacity=".4"/>',
    ]
    for index in range(len(chart.series)):
        parts += _svg_series(chart, index, frame, (left, bottom, width - 10 - left, bottom - top))
        along, under, name = legend[index]
        parts.append(
            f'<text x="{along}" y="{height - 4 + under}" fill="{CURVES[index % len(CURVES)]}" font-size="13">'
            f"{escape(name)}</text>"
        )
    for place, label in ticks(frame.y0, frame.y1, 5, chart.log_y):
        y = bottom - _share(place, frame.y0, frame.y1) * (bottom - top)
        parts.append(f'<path d="M{left - 4} {y:.1f}H{left}" stroke="currentColor" opacity=".4"/>')
        parts.append(_label(left - 6, y + 4, "end", label))
    for place, label in ticks(frame.x0, frame.x1, 7, chart.log_x):
        x = left + _share(place, frame.x0, frame.x1) * (width - 10 - left)
        parts.append(f'<path d="M{x:.1f} {bottom}v4" stroke="currentColor" opacity=".4"/>')
        parts.append(_label(x, bottom + 18, "end" if x > width - 30 else "middle", label))
    name = axis_name(chart.x_label, chart.log_x)
    parts.append(_label((left + width) // 2, bottom + 34, "middle", name))
    parts.append(_label(4, 12, "start", axis_name(chart.y_label, chart.log_y)))
    return "".join(parts) + "</svg>"


def _legend(names: list[str], left: int, width: int) -> list[tuple[int, int, str]]:
    """(x, y from the first line, name) of each curve: as many beside one another as there is room for."""
    found, x, y = [], left, 0
    for name in cut_names(names, (width - left) // _LETTER):
        wide = _LETTER * len(name)
        if x > left and x + wide > width:
            x, y = left, y + 18
        found.append((x, y, name))
        x += max(150, wide + 20)
    return found


def _svg_series(
    chart: Chart, index: int, frame: _Frame, box: tuple[int, int, int, int]
) -> list[str]:
    """A curve with its band, or marks with their error bars, in a box (left, bottom, width, height)."""
    left, bottom, width, height = box

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * width, bottom - y * height

    series, colour = chart.series[index], CURVES[index % len(CURVES)]
    points = [place(x, y) for x, y in _unit(chart, series, frame)]
    band = [(place(x, low), place(x, high)) for x, low, high in _band(chart, series, frame)]
    if series.mark == "line":
        corners = _corners([low for low, _ in band] + [high for _, high in reversed(band)])
        dash = ' stroke-dasharray="6 4"' if index else ""
        return [
            *([f'<polygon points="{corners}" fill="{colour}" opacity=".15"/>'] if band else []),
            f'<polyline points="{_corners(points)}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>',
        ]
    base = place(0, _base(chart, frame))[1]
    wide = 0.8 * width / max(1, len(points))
    return [
        *(_marked(series.mark, x, y, base, wide, colour) for x, y in points),
        *(
            f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-width="1.5"/>'
            for (x, low), (_, high) in band
        ),
    ]


def _corners(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _marked(mark: str, x: float, y: float, base: float, wide: float, colour: str) -> str:
    """A point, a stem or a bar."""
    if mark == "bars":
        top, height = min(y, base), abs(y - base)
        return (
            f'<rect x="{x - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{height:.1f}" '
            f'fill="{colour}" opacity=".8"/>'
        )
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    if mark == "points":
        return dot
    return f'<path d="M{x:.1f} {base:.1f}V{y:.1f}" stroke="{colour}" stroke-width="1.5"/>{dot}'


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="12" fill="currentColor">'
        f"{escape(text)}</text>"
    )


def _points(chart: Chart, series: Series) -> list[tuple[float, float]]:
    """The finite points, on logarithmic axes where asked."""
    points = []
    for x, y in zip(series.x, series.y, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        if (chart.log_x and x <= 0) or (chart.log_y and y <= 0):
            continue
        points.append((math.log10(x) if chart.log_x else x, math.log10(y) if chart.log_y else y))
    return points


def _frame(chart: Chart) -> _Frame:
    points = [p for series in chart.series for p in _points(chart, series)] or [(0.0, 0.0)]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    ys += _within_reach([edge for s in chart.series for edge in _band_edges(chart, s)], ys)
    marks = {series.mark for series in chart.series}
    if marks & {"stems", "bars"} and not chart.log_y:
        ys.append(0.0)  # where they begin
    edge = 0.0
    if marks != {"line"}:  # whole marks at both ends
        edge = 0.5 * (max(xs) - min(xs)) / max(1, len(set(xs)) - 1) if "bars" in marks else 0.0
        edge = edge or 0.03 * (max(xs) - min(xs))
    return _Frame(min(xs) - edge, max(xs) + edge, min(ys), max(ys))


def _within_reach(edges: list[float], ys: list[float]) -> list[float]:
    """The ends of bands, but no further from the curves than these are high: they are what is to be seen."""
    span = max(ys) - min(ys) or abs(ys[0])
    return [min(max(edge, min(ys) - span), max(ys) + span) for edge in edges]


def _band_edges(chart: Chart, series: Series) -> list[float]:
    """The lower and upper edges of a band, logarithms where asked; those that are not finite left out."""
    edges = [*(series.low or []), *(series.high or [])]
    if chart.log_y:
        return [math.log10(edge) for edge in edges if 0 < edge < math.inf]
    return [edge for edge in edges if math.isfinite(edge)]


def _base(chart: Chart, frame: _Frame) -> float:
    """Where stems and bars begin, in [0, 1]: at zero, on a logarithmic axis at its lower end."""
    return 0.0 if chart.log_y else min(1.0, max(0.0, _share(0.0, frame.y0, frame.y1)))


def _unit(chart: Chart, series: Series, frame: _Frame) -> list[tuple[float, float]]:
    """The points in [0, 1] × [0, 1]."""
    width, height = frame.x1 - frame.x0 or 1.0, frame.y1 - frame.y0 or 1.0
    return [((x - frame.x0) / width, (y - frame.y0) / height) for x, y in _points(chart, series)]


def _band(chart: Chart, series: Series, frame: _Frame) -> list[tuple[float, float, float]]:
    """(x, lower edge, upper edge) of the band in [0, 1] × [0, 1]; what lies beyond the frame is at its edge."""
    if series.low is None or series.high is None:
        return []
    width, height = frame.x1 - frame.x0 or 1.0, frame.y1 - frame.y0 or 1.0

    def place(value: float) -> float:
        if chart.log_y:
            value = math.log10(value) if value > 0 else -math.inf
        return min(1.0, max(0.0, (value - frame.y0) / height))

    found = []
    for x, low, high in zip(series.x, series.low, series.high, strict=True):
        if math.isnan(low) or math.isnan(high) or not math.isfinite(x) or (chart.log_x and x <= 0):
            continue
        across = ((math.log10(x) if chart.log_x else x) - frame.x0) / width
        if 0 <= across <= 1:
            found.append((across, place(low), place(high)))
    return found


def _edges(
    chart: Chart, index: int, frame: _Frame, width: int, height: int
) -> Iterator[tuple[int, int]]:
    """(column, row from the top) of single dots along both edges of a curve's band."""
    latest = -4
    for x, low, high in _band(chart, chart.series[index], frame):
        column = round(x * (width - 1))
        if column - latest < 4:
            continue
        latest = column
        for y in (low, high):
            if 0 < y < 1:
                yield column, round((1 - y) * (height - 1))


def _pixels(
    chart: Chart, index: int, frame: _Frame, width: int, height: int
) -> Iterator[tuple[int, int]]:
    """(column, row from the top) of the dots along the curve's line segments, or of its marks."""
    dots = [
        (x * (width - 1), (1 - y) * (height - 1))
        for x, y in _unit(chart, chart.series[index], frame)
    ]
    mark = chart.series[index].mark
    if mark != "line":
        wide = max(0, width // (2 * len(dots) or 1) - 1) if mark == "bars" else 0
        base = (1 - _base(chart, frame)) * (height - 1)
        for x, y in dots:
            low, high = sorted((round(y), round(y if mark == "points" else base)))
            for column in range(round(x) - wide, round(x) + wide + 1):
                if 0 <= column < width:
                    yield from ((column, line) for line in range(low, high + 1))
        return
    for (x0, y0), (x1, y1) in zip(dots, [*dots[1:], *dots[-1:]], strict=True):
        steps = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
        for k in range(steps):
            yield round(x0 + (x1 - x0) * k / steps), round(y0 + (y1 - y0) * k / steps)
