"""Ticks of a chart's axis: round numbers, or powers of ten."""

import math
from collections.abc import Sequence

from curvcli.report.data import Chart
from curvcli.report.numbers import number

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


def ticks(low: float, high: float, count: int, log: bool = False) -> list[tuple[float, str]]:
    """(place on the axis, label) of at most about ``count`` ticks within [low, high]; at least the two ends.

    Args:
        low: lower end; its decimal logarithm where ``log``.
        high: upper end, the same.
        count: that there is room for.
        log: the axis is logarithmic.
    """
    # One or two more than there should be, where fewer would be less than two.
    for aimed in range(max(1, count), count + 4):
        step = _step((high - low) / aimed, log)
        places = [] if step <= 0 else _multiples(low, high, step)
        if len(places) > 1:
            break
    if log and len(places) < 3 and 0 < high - low < 2:
        return _between_powers(low, high, count)
    if len(places) < 2:  # the ends as they are
        places = [low] if low == high else [low, high]
        return [(place, number(place, 3)) for place in places]
    if log:
        return [(place, f"{10.0**place:g}") for place in places]
    largest = max(map(abs, places))
    if not 1e-4 < largest < 1e6:
        return [(place, number(place, 3)) for place in places]
    # As many decimals as the step has.
    decimals = next((d for d in range(9) if abs(step - round(step, d)) < 1e-9 * step), 9)
    return [(place, f"{place + 0.0:.{decimals}f}") for place in places]


def counted(chart: Chart) -> bool:
    """Whether its axis is one of few whole numbers, between which there is nothing: layers, ranks."""
    return not chart.log_x and few_whole([v for s in chart.series for v in s.x])


def few_whole(values: Sequence[float], few: int = 12) -> bool:
    """Whether they are whole numbers of a range of at most so many; NaN does not count.

    >>> few_whole([0.0, 1.0, 2.0]), few_whole([0.0, 100.0]), few_whole([0.0, 0.5])
    (True, False, False)
    """
    known = [v for v in values if math.isfinite(v)]
    if len(known) < 2 or any(v != int(v) for v in known):
        return False
    return 0 < max(known) - min(known) <= few


def _between_powers(low: float, high: float, count: int) -> list[tuple[float, str]]:
    """On a logarithmic axis that is too short for powers of ten: 1, 2 and 5 of each, or round numbers."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    values = [k * 10.0**d for d in decades for k in (1, 2, 5)]
    found = [(math.log10(v), f"{v:g}") for v in values if low <= math.log10(v) <= high]
    if len(found) > 2:
        return found
    inner = ticks(10**low, 10**high, count)
    return [(math.log10(float(label)), label) for _, label in inner if float(label) > 0]


def _step(least: float, log: bool) -> float:
    """The smallest round step of at least ``least``."""
    if least <= 0 or not math.isfinite(least):
        return 0.0
    if log:
        return float(math.ceil(least))
    scale = 10.0 ** math.floor(math.log10(least))
    return next((r * scale for r in _ROUND if r * scale >= least * (1 - 1e-9)), 10 * scale)


def _multiples(low: float, high: float, step: float) -> list[float]:
    slack = 1e-9 * step
    first, last = math.ceil((low - slack) / step), math.floor((high + slack) / step)
    return [k * step for k in range(first, last + 1)]
