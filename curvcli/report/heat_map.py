"""Maps: as shades for terminals and Markdown, as SVG for pages."""

import itertools
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from curvcli.errors import printable
from curvcli.report.axis import ticks
from curvcli.report.chart import below
from curvcli.report.data import HeatMap
from curvcli.report.names import cut_names
from curvcli.report.numbers import number

SHADES = " ░▒▓█"
"""From low to high, the same number of levels as there are colours."""
UNKNOWN = "?"
COLOURS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
"""Of viridis (Smith & van der Walt 2015), which the colour-blind tell apart by lightness."""
_WIDEST, _TALLEST = 64, 20
# Pixels of a letter.
_LETTER = 7.5


class Shaded(NamedTuple):
    """A map as lines of text."""

    heading: str
    rows: list[tuple[str, str]]
    """Label of the vertical axis, and characters: shades, or letters of spots."""
    axis: list[str]
    indent: int
    legend: list[str]
    """What each shade stands for, and each letter."""


def levels(block: HeatMap) -> list[float]:
    """The values between the shades: quarters of the range, or of its logarithm."""
    known = [v for row in block.values for v in row if math.isfinite(v)] or [0.0]
    low, high = min(known), max(known)
    shares = [k / len(SHADES) for k in range(1, len(SHADES))]
    if block.log and low > 0:
        return [float(low * (high / low) ** s) for s in shares]
    return [low + s * (high - low) for s in shares]


def level(value: float, edges: Sequence[float]) -> int:
    """Which shade a value has."""
    return sum(value >= edge for edge in edges)


def letters(block: HeatMap) -> list[str]:
    """A character for each spot: O for the weights, else A, B, …"""
    found, taken = [], 0
    for spot in block.spots:
        if spot.x == spot.y == 0.0:
            found.append("O")
            continue
        letter = "ABCDEFGHIJKLMNPQRSTUVWXYZ"[taken : taken + 1] or "·"
        taken += 1
        found.append(letter)
    return found


def shaded(block: HeatMap, columns: int) -> Shaded:
    """The map in at most so many columns."""
    labels = ticks(block.y[0], block.y[-1], 6)
    indent = max(len(label) for _, label in labels) + 2
    width = max(10, min(_WIDEST, columns - indent))
    height = max(8, min(_TALLEST, width // 3))
    edges = levels(block)
    cells = []
    for i in range(height):
        y = _between(block.y, 1 - i / (height - 1))
        row = [_at(block, _between(block.x, k / (width - 1)), y) for k in range(width)]
        cells.append([UNKNOWN if math.isnan(v) else SHADES[level(v, edges)] for v in row])
    for spot, letter in zip(block.spots, letters(block), strict=True):
        column = round(_share(spot.x, block.x) * (width - 1))
        row_ = round((1 - _share(spot.y, block.y)) * (height - 1))
        if 0 <= column < width and 0 <= row_ < height and cells[row_][column] != "O":
            cells[row_][column] = letter
    at = {round((1 - _share(v, block.y)) * (height - 1)): label for v, label in labels}
    rows = [
        (f"{at.get(i, ''):>{indent - 2}} {'┤' if i in at else '│'}", "".join(cells[i]))
        for i in range(height)
    ]
    return Shaded(
        below(printable(block.y_label), 0, indent + width).strip(),
        rows,
        _horizontal(block, indent, width),
        indent,
        _legend(block, edges),
    )


def _horizontal(block: HeatMap, indent: int, width: int) -> list[str]:
    line, labels = ["─"] * width, ""
    for place, label in ticks(block.x[0], block.x[-1], max(3, width // 10)):
        column = round(_share(place, block.x) * (width - 1))
        start = min(max(0, column - len(label) // 2), max(0, width - len(label)))
        if labels and start <= len(labels):
            continue
        line[column] = "┬"
        labels = labels.ljust(start) + label
    name = printable(block.x_label)
    return [
        " " * (indent - 1) + "└" + "".join(line),
        " " * indent + labels,
        below(name, indent, width),
    ]


def _legend(block: HeatMap, edges: Sequence[float]) -> list[str]:
    """One entry for each shade, for points that are not known, and for each letter."""
    known = [v for row in block.values for v in row if math.isfinite(v)] or [0.0]
    bounds = [min(known), *edges, max(known)]
    found = [
        f"[{shade}] {number(low, 3)} to {number(high, 3)}"
        for shade, low, high in zip(SHADES, bounds, bounds[1:], strict=False)
    ]
    if any(math.isnan(v) for row in block.values for v in row):
        found.append(f"{UNKNOWN} not known")
    named = [
        f"{letter} {printable(spot.name)}"
        for spot, letter in zip(block.spots, letters(block), strict=True)
        if letter != "·"
    ]
    return [*found, *named]


def as_text(block: HeatMap, columns: int = 72) -> str:
    """The map without colours."""
    drawn = shaded(block, columns)
    lines = [label + cells.rstrip() for label, cells in drawn.rows]
    legend = [" " * drawn.indent + entry for entry in drawn.legend]
    return "\n".join(
        [drawn.heading, *lines, *drawn.axis, f"{printable(block.value_label)}:", *legend]
    )


def svg(block: HeatMap, width: int = 640, height: int = 420) -> str:
    """The map as inline SVG: a rectangle for each point, spots with their names."""
    left, right, top, bottom = 70, width - 120, 24, height - 50
    if block.y_names:  # a line of text for each
        left, bottom = 210, top + 18 * len(block.y_names)
        height = bottom + 50
    edges = _fine(block)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(printable(block.title), quote=True)}">'
    ]
    xs, ys = _borders(block.x), _borders(block.y)

    def across(x: float) -> float:
        return left + (x - xs[0]) / (xs[-1] - xs[0]) * (right - left)

    def down(y: float) -> float:
        share = (y - ys[0]) / (ys[-1] - ys[0])
        # Names are read from the top, numbers grow upwards.
        return top + share * (bottom - top) if block.y_names else bottom - share * (bottom - top)

    for j, row in enumerate(block.values):
        for i, value in enumerate(row):
            colour = "#8884" if math.isnan(value) else colour_of(level(value, edges) / len(edges))
            x0, x1 = across(xs[i]), across(xs[i + 1])
            y0, y1 = sorted((down(ys[j]), down(ys[j + 1])))
            parts.append(
                f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0 + 0.3:.1f}" height="{y1 - y0 + 0.3:.1f}" '
                f'fill="{colour}">{_title(block, i, j)}</rect>'
            )
    if block.path:
        points = " ".join(f"{across(s.x):.1f},{down(s.y):.1f}" for s in block.spots)
        parts.append(f'<polyline points="{points}" fill="none" stroke="#fff" stroke-width="2"/>')
    for spot in block.spots:
        x, y = across(spot.x), down(spot.y)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#d13b2e" stroke="#fff">'
            f"<title>{escape(printable(spot.name))}</title></circle>"
        )
        if not block.path or spot in (block.spots[0], block.spots[-1]):
            parts.append(
                f'<text x="{x + 7:.1f}" y="{y - 6:.1f}" font-size="12" fill="#fff" stroke="#000" '
                f'stroke-width="2.5" paint-order="stroke">{escape(printable(spot.name))}</text>'
            )
    return "".join([*parts, *_svg_axes(block, across, down, left, right, bottom, top)]) + "</svg>"


def _title(block: HeatMap, i: int, j: int) -> str:
    """What is told of a cell."""
    if not block.texts:
        return ""
    name = " · ".join([*block.y_names[j : j + 1], *block.x_names[i : i + 1], block.texts[j][i]])
    return f"<title>{escape(printable(name))}</title>"


def _named(
    names: Sequence[str], places: Sequence[float], count: int, longest: int
) -> list[tuple[float, str]]:
    """Ticks of an axis; its names where it has any, shortened."""
    if not names:
        return ticks(places[0], places[-1], count)
    return list(zip(places, cut_names(names, longest), strict=True))


def _svg_axes(
    block: HeatMap,
    across: Callable[[float], float],
    down: Callable[[float], float],
    left: int,
    right: int,
    bottom: int,
    top: int,
) -> list[str]:
    """Ticks of both axes, and the bar of colours with its values."""
    parts = []
    for place, label in _named(block.x_names, block.x, 7, 18):
        parts.append(_label(across(place), bottom + 16, "middle", label))
    for place, label in _named(block.y_names, block.y, 6, 28):
        parts.append(_label(left - 6, down(place) + 4, "end", label))
    parts.append(_label((left + right) / 2, bottom + 36, "middle", block.x_label))
    parts.append(_label(4, 12, "start", block.y_label))
    edges = _fine(block)
    tall = (bottom - top) / (len(edges) + 1)
    for k in range(len(edges) + 1):
        y = bottom - (k + 1) * tall
        parts.append(
            f'<rect x="{right + 14}" y="{y:.1f}" width="14" height="{tall + 0.3:.1f}" '
            f'fill="{colour_of(k / len(edges))}"/>'
        )
        if k < len(edges) and k % 4 == 3:
            parts.append(_label(right + 32, y + 4, "start", number(edges[k], 3)))
    # Above its bar; what is long ends with the drawing.
    start = min(right + 14, right + 118 - _LETTER * len(printable(block.value_label)))
    parts.append(_label(start, 12, "start", block.value_label))
    return parts


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="currentColor">'
        f"{escape(printable(text))}</text>"
    )


def _fine(block: HeatMap, count: int = 20) -> list[float]:
    """Values between colours, more than there are shades."""
    known = [v for row in block.values for v in row if math.isfinite(v)] or [0.0]
    low, high = min(known), max(known)
    if block.log and low > 0:
        return [float(low * (high / low) ** (k / count)) for k in range(1, count)]
    return [low + k / count * (high - low) for k in range(1, count)]


def colour_of(share: float) -> str:
    """The colour at a share of the scale, between those of `COLOURS`."""
    place = min(1.0, max(0.0, share)) * (len(COLOURS) - 1)
    i = min(int(place), len(COLOURS) - 2)
    ends = [[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in COLOURS[i : i + 2]]
    mixed = [round(a + (place - i) * (b - a)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{v:02x}" for v in mixed)


def _borders(places: Sequence[float]) -> list[float]:
    """Half-way between neighbours, and as far outside at the ends."""
    if len(places) == 1:
        return [places[0] - 0.5, places[0] + 0.5]
    middle = [(a + b) / 2 for a, b in itertools.pairwise(places)]
    return [2 * places[0] - middle[0], *middle, 2 * places[-1] - middle[-1]]


def _share(value: float, places: Sequence[float]) -> float:
    return (value - places[0]) / (places[-1] - places[0] or 1.0)


def _between(places: Sequence[float], share: float) -> float:
    return places[0] + share * (places[-1] - places[0])


def _at(block: HeatMap, x: float, y: float) -> float:
    """The value between four points, by bilinear interpolation; NaN beside one that is not known."""
    (i, s), (j, t) = _cell(block.x, x), _cell(block.y, y)
    corners = [block.values[j + b][i + a] for b in (0, 1) for a in (0, 1)]
    weights = [u * v for v in (1 - t, t) for u in (1 - s, s)]
    if block.log and all(c > 0 for c in corners):
        return math.exp(sum(w * math.log(c) for w, c in zip(weights, corners, strict=True)))
    return sum(w * c for w, c in zip(weights, corners, strict=True) if w)


def _cell(places: Sequence[float], value: float) -> tuple[int, float]:
    """(index of the gap that the value lies in, its share of the gap)."""
    i = max(0, min(len(places) - 2, sum(p <= value for p in places) - 1))
    return i, min(1.0, max(0.0, (value - places[i]) / (places[i + 1] - places[i])))
