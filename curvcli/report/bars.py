"""Bars by name: as blocks for terminals and Markdown, as SVG for pages."""

import math
from html import escape

from curvcli.errors import printable
from curvcli.report.axis import ticks
from curvcli.report.chart import axis_name
from curvcli.report.colours import CURVES
from curvcli.report.data import Bars
from curvcli.report.names import cut_names
from curvcli.report.numbers import bar, number

# Decades that a logarithmic axis has at least: nearly equal figures have nearly equal bars.
_DECADES = 3.0
_NAME = 28


def ends(block: Bars) -> tuple[float, float]:
    """Both ends of the axis, decimal logarithms where it is logarithmic; zero is on one that is not."""
    known = [v for g in block.groups for v in g.values if math.isfinite(v)]
    if block.log:
        logs = [math.log10(v) for v in known if v > 0] or [0.0]
        # A little below the smallest one, so that it still has a bar.
        return min(*logs, max(logs) - _DECADES) - 0.05 * _DECADES, max(logs)
    return min([0.0, *known]), max([0.0, *known])


def share(value: float, low: float, high: float, log: bool) -> float | None:
    """Where the value lies between the ends, in [0, 1]; None where it is not known."""
    if not math.isfinite(value) or (log and value < 0):
        return None
    if log:
        value = math.log10(value) if value else low
    return min(1.0, max(0.0, (value - low) / (high - low or 1.0)))


def rows(block: Bars, columns: int) -> list[tuple[str, int, str]]:
    """(name, number of the group, bar and value) line by line; bars show magnitudes, values their signs."""
    low, high = ends(block)
    if not block.log:
        low, high = 0.0, max(-low, high)
    names = cut_names(block.names, _NAME)
    wide = max(map(len, names), default=0)
    values = {number(v, 3) for g in block.groups for v in g.values}
    room = max(8, min(40, columns - wide - max(map(len, values), default=0) - 4))
    found = []
    for i, name in enumerate(names):
        for k, group in enumerate(block.groups):
            value = group.values[i]
            size = share(value if block.log else abs(value), low, high, block.log)
            drawn = bar(size or 0.0, room)
            found.append((f"{'' if k else name:<{wide}}", k, f"{drawn} {number(value, 3)}"))
    return found


def as_text(block: Bars, columns: int = 72) -> str:
    """The bars without colours; those of each group beside its name, where there are several."""
    many = len(block.groups) > 1
    wide = max((len(printable(g.name)) for g in block.groups), default=0)
    lines = [axis_name(block.value_label, block.log)]
    for name, k, drawn in rows(block, columns - (wide + 2) * many):
        group = f"{printable(block.groups[k].name):<{wide}}  " if many else ""
        lines.append(f"{name}  {group}{drawn}")
    return "\n".join(lines)


def svg(block: Bars, width: int = 640) -> str:
    """The bars as inline SVG."""
    thick = 9 if len(block.groups) > 1 else 14
    step = thick * len(block.groups) + 7
    left, right, top = 200, width - 20, 8
    bottom = top + step * len(block.names)
    low, high = ends(block)
    zero = left if block.log else left + (right - left) * (share(0.0, low, high, False) or 0.0)
    parts = [
        f'<svg viewBox="0 0 {width} {bottom + 62}" width="{width}" role="img" '
        f'aria-label="{escape(printable(block.title), quote=True)}">'
    ]
    for i, (name, short) in enumerate(zip(block.names, cut_names(block.names, _NAME), strict=True)):
        y = top + step * i
        parts.append(_text(left - 8, y + step / 2, "end", short, "currentColor"))
        for k, group in enumerate(block.groups):
            part = share(group.values[i], low, high, block.log)
            if part is None:
                continue
            end = left + part * (right - left)
            parts.append(
                f'<rect x="{min(zero, end):.1f}" y="{y + thick * k}" width="{abs(end - zero):.1f}" '
                f'height="{thick - 1}" fill="{CURVES[k % len(CURVES)]}"><title>{escape(printable(name))}: '
                f"{number(group.values[i])}</title></rect>"
            )
            if group.errors is not None and not block.log:
                ends_ = [
                    share(group.values[i] + s * group.errors[i], low, high, False) for s in (-1, 1)
                ]
                if None not in ends_:
                    a, b = (left + (e or 0.0) * (right - left) for e in ends_)
                    middle = y + thick * k + thick / 2
                    parts.append(f'<path d="M{a:.1f} {middle}H{b:.1f}" stroke="currentColor"/>')
    parts.append(
        f'<path d="M{zero:.1f} {top}V{bottom}M{left} {bottom}H{right}" stroke="currentColor" '
        'opacity=".4" fill="none"/>'
    )
    for place, label in ticks(low, high, 6, block.log):
        x = left + (place - low) / (high - low or 1.0) * (right - left)
        parts.append(_text(x, bottom + 14, "middle", label, "currentColor"))
    name = axis_name(block.value_label, block.log)
    parts.append(_text((left + right) / 2, bottom + 32, "middle", name, "currentColor"))
    if len(block.groups) > 1:
        parts += [
            _text(left + 150 * k, bottom + 54, "start", printable(g.name), CURVES[k % len(CURVES)])
            for k, g in enumerate(block.groups)
        ]
    return "".join(parts) + "</svg>"


def _text(x: float, y: float, anchor: str, text: str, colour: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="{colour}">'
        f"{escape(text)}</text>"
    )
