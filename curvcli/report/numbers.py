"""How a number is written for people: short, never cut."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

from curvcli.errors import printable
from curvcli.report.data import Bar, Cell, Measured, State

# Characters of a full bar where there is room.
BAR = 20


def number(value: float | None, digits: int = 4) -> str:
    """``value`` with ``digits`` significant digits; an exponent where it is very large or small."""
    if value is None or math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 < exponent < 6:
        return f"{value:.{max(0, digits - 1 - exponent)}f}"
    return f"{value:.{digits - 1}e}"


def about(value: float | None, digits: int = 3) -> str:
    """`number` with no more than ``digits`` digits that tell, as a ratio in a sentence needs.

    >>> about(146295.3), about(1042.4), about(1.607, 2), about(1.58e-12)
    ('146,000', '1,040', '1.6', '1.58e-12')
    """
    if value is None or value == 0 or not math.isfinite(value):
        return number(value)
    rounded = _rounded(value, digits, ROUND_HALF_EVEN)
    return f"{rounded:,.0f}" if 10**digits <= abs(rounded) < 1e6 else number(rounded, digits)


def at_least(value: float, digits: int = 4) -> str:
    """`number`, rounded down: a figure of at least ``value`` is at least what is written."""
    return number(_rounded(value, digits, ROUND_FLOOR), digits)


def at_most(value: float, digits: int = 4) -> str:
    """`number`, rounded up."""
    return number(_rounded(value, digits, ROUND_CEILING), digits)


def agreed(low: float, high: float, digits: int = 4) -> str | None:
    """The most digits, up to ``digits`` and at least two, that all figures between two round to; None: not so many."""
    for count in range(digits, 1, -1):
        if number(low, count) == number(high, count):
            return number(low, count)
    return None


def _rounded(value: float, digits: int, how: str) -> float:
    if value == 0 or not math.isfinite(value):
        return value
    exact = Decimal(value)
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=how))


def measured(item: Measured) -> str:
    """``value ± error``: as many digits as the error allows, at least two and at most six.

    >>> measured(Measured(26899.0, 1055.0)), measured(Measured(1.2345, 0.0123))
    ('26900 ± 1100', '1.23 ± 0.01')
    """
    if item.value is None or item.error is None or item.error <= 0 or item.value == 0:
        return number(item.value)
    if not (math.isfinite(item.value) and math.isfinite(item.error)):
        return f"{number(item.value)} ± {number(item.error, 2)}"
    if 100 <= item.error < 1e6 and abs(item.value) < 1e6:  # whole numbers, no exponent
        error = _rounded(item.error, 2, ROUND_HALF_EVEN)
        value = round(item.value, 1 - math.floor(math.log10(error)))
        return f"{f'{value:.0f}' if value else number(item.value, 2)} ± {error:.0f}"
    digits = math.floor(math.log10(abs(item.value))) - math.floor(math.log10(item.error)) + 1
    return f"{number(item.value, min(6, max(2, digits)))} ± {number(item.error, 1)}"


def text(cell: Cell) -> str:
    """A cell as text."""
    if cell is None:
        return "—"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Measured):
        return measured(cell)
    if isinstance(cell, Bar):
        return bar(cell.share)
    if isinstance(cell, State):
        return printable(cell.text)
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return number(cell)
    return printable(cell)


def bar(share: float, width: int = BAR) -> str:
    """A horizontal bar of ``share`` of ``width`` characters, in eighths of one."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
