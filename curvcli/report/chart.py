"""Curves and their bands: as braille for terminals and Markdown, as SVG for HTML."""

import math
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from curvcli.errors import printable
from curvcli.report.data import Chart, Series
from curvcli.report.numbers import number

_WIDTH, _HEIGHT = 60, 10
_EMPTY = 0x2800
# Bit of each dot of a braille character, by (column, row).
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_COLOURS = ("#2e8b57", "#b5179e", "#c08000", "#008b8b", "#3060c0")


class Row(NamedTuple):
    """One line of a drawing: its label, and characters with the number of their curve (-1: none)."""

    label: str
    cells: list[tuple[str, int]]


class Drawing(NamedTuple):
    """A chart as lines of text."""

    rows: list[Row]
    axis: str
    indent: int


class _Frame(NamedTuple):
    """The ranges that are shown, after taking logarithms where asked."""

    x0: float
    x1: float
    y0: float
    y1: float


def draw(chart: Chart, width: int = _WIDTH, height: int = _HEIGHT) -> Drawing:
    """The curves as braille characters, later ones dotted and behind the first."""
    frame = _frame(chart)
    bits = [[0] * width for _ in range(height)]
    owner = [[-1] * width for _ in range(height)]
    for index in reversed(range(len(chart.series))):
        for step, (column, line) in enumerate(_pixels(chart, index, frame, 2 * width, 4 * height)):
            if index and step % 4 > 1:
                continue
            bits[line // 4][column // 2] |= _DOTS[column % 2][line % 4]
            owner[line // 4][column // 2] = index
        for column, line in _edges(chart, index, frame, 2 * width, 4 * height):
            bits[line // 4][column // 2] |= _DOTS[column % 2][line % 4]
            owner[line // 4][column // 2] = max(owner[line // 4][column // 2], index)
    top, bottom = (number(_undo(v, chart.log_y), 3) for v in (frame.y1, frame.y0))
    indent = max(len(top), len(bottom)) + 2
    rows = []
    for i in range(height):
        label = {0: top, height - 1: bottom}.get(i, "")
        cells = [(chr(_EMPTY + b) if b else " ", o) for b, o in zip(bits[i], owner[i], strict=True)]
        rows.append(Row(f"{label:>{indent - 2}} ┤" if label else " " * (indent - 1) + "│", cells))
    left, right = (number(_undo(v, chart.log_x), 3) for v in (frame.x0, frame.x1))
    middle = printable(chart.x_label).center(max(0, width - len(left) - len(right)))
    return Drawing(rows, " " * indent + left + middle + right, indent)


def as_text(chart: Chart) -> str:
    """The drawing without colours, with a legend."""
    drawing = draw(chart)
    lines = [row.label + "".join(c for c, _ in row.cells) for row in drawing.rows]
    legend = "   ".join(
        f"{'━━' if i == 0 else '··'} {printable(s.name)}" for i, s in enumerate(chart.series)
    )
    return "\n".join([*lines, drawing.axis, " " * drawing.indent + legend])


def svg(chart: Chart, width: int = 640, height: int = 280) -> str:
    """The curves as inline SVG."""
    frame = _frame(chart)
    left, bottom = 70, height - 40
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(printable(chart.title), quote=True)}">',
        f'<path d="M{left} 10V{bottom}H{width - 10}" fill="none" stroke="currentColor" opacity=".4"/>',
    ]
    for index, series in enumerate(chart.series):
        points = " ".join(
            f"{left + x * (width - 10 - left):.1f},{bottom - y * (bottom - 10):.1f}"
            for x, y in _unit(chart, series, frame)
        )
        colour = _COLOURS[index % len(_COLOURS)]
        band = [(x, low) for x, low, _ in _band(chart, series, frame)]
        band += [(x, high) for x, _, high in reversed(_band(chart, series, frame))]
        if band:
            corners = " ".join(
                f"{left + x * (width - 10 - left):.1f},{bottom - y * (bottom - 10):.1f}"
                for x, y in band
            )
            parts.append(f'<polygon points="{corners}" fill="{colour}" opacity=".15"/>')
        dash = ' stroke-dasharray="6 4"' if index else ""
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        )
        parts.append(
            f'<text x="{left + 10 + 150 * index}" y="{height - 4}" fill="{colour}" font-size="13">'
            f"{escape(printable(series.name))}</text>"
        )
    for y, value in ((18, frame.y1), (bottom, frame.y0)):
        parts.append(_label(left - 6, y, "end", number(_undo(value, chart.log_y), 3)))
    for x, anchor, value in ((left, "start", frame.x0), (width - 10, "end", frame.x1)):
        parts.append(_label(x, bottom + 18, anchor, number(_undo(value, chart.log_x), 3)))
    parts.append(_label((left + width) // 2, bottom + 18, "middle", printable(chart.x_label)))
    return "".join(parts) + "</svg>"


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
    return _Frame(min(xs), max(xs), min(ys), max(ys))


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
    """(column, row from the top) of the dots along the curve's line segments."""
    dots = [
        (x * (width - 1), (1 - y) * (height - 1))
        for x, y in _unit(chart, chart.series[index], frame)
    ]
    for (x0, y0), (x1, y1) in zip(dots, [*dots[1:], *dots[-1:]], strict=True):
        steps = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
        for k in range(steps):
            yield round(x0 + (x1 - x0) * k / steps), round(y0 + (y1 - y0) * k / steps)


def _undo(value: float, log: bool) -> float:
    return 10**value if log else value
