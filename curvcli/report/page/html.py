"""Answers as one self-contained HTML page, from the templates beside this file; nothing is fetched."""

import base64
import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from curvcli.errors import OutputError, printable
from curvcli.report import bars, chart, heat_map
from curvcli.report.colours import ATTENTION, BAD, CURVES, GOOD
from curvcli.report.data import (
    MARKS,
    Bars,
    Block,
    Cell,
    Chart,
    Facts,
    Finding,
    Headline,
    Measured,
    Picture,
    Section,
    Sentence,
)
from curvcli.report.numbers import text
from curvcli.report.page import plotly

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
# Letters of a name in a table that stay on one line, on a phone too.
_WORD = 18


class Page(Struct, frozen=True, kw_only=True):
    """What is on a page."""

    title: str
    headline: Headline | None = None
    lead: Sequence[Block] = ()
    """Above the sections."""
    sections: Sequence[Section] = ()
    tail: Sequence[Block] = ()
    """Below them."""
    provenance: Facts


def render(page: Page, *, static: bool = False) -> str:
    """The whole page.

    Args:
        page: what is on it.
        static: without scripts: drawings instead of figures that can be zoomed.

    Raises:
        OutputError: a library is not installed.
    """
    figures: list[dict[str, Any]] = []

    def number(block: Picture) -> int:
        figures.append(plotly.figure(block))
        return len(figures) - 1

    scripts = [] if static else [plotly.library(), (_HERE / "page.js").read_text("utf-8")]
    known = {} if static else {"number": number}
    template = _environment().get_template("page.html")
    # Figures are numbered while the page is written, and stand behind it: `figures` fills as it goes.
    written = template.render(
        page=page, style=_style(), scripts=[_Script(s) for s in scripts], figures=figures,
        policy=_policy(scripts), **known,
    )  # fmt: skip
    return written + "\n"


def fragment(
    blocks: Sequence[Block], findings: Sequence[Finding], headline: Headline | None = None
) -> str:
    """An answer without a page around it and without scripts, for notebooks."""
    template = _environment().get_template("fragment.html")
    return template.render(blocks=blocks, findings=findings, headline=headline, scripts=[])


class _Script(str):
    """Our own source, which stands in the page as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


def _policy(scripts: Sequence[str]) -> str:
    """Only these scripts run, and nothing is fetched, whatever a name in a file says."""
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes) or "'none'"
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {allowed}"
    )


def _style() -> _Script:
    colours = f":root {{ --good: {GOOD}; --attention: {ATTENTION}; --bad: {BAD}; --curve: {CURVES[0]}; }}\n"
    return _Script(colours + (_HERE / "style.css").read_text("utf-8"))


def _environment() -> "Environment":
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise OutputError(
            "pages are written by jinja2, which is not installed",
            "pip install 'curvcli[report]', or name a file that ends in .md",
        ) from None
    made = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "text": text, "kind": lambda value: type(value).__name__, "mark": MARKS.__getitem__,
        "anchor": anchor, "svg": svg, "sort_key": _sort_key,
        "word": _longest_word, "behind_head": _behind_head,
    }  # fmt: skip
    made.tests["picture"] = lambda block: isinstance(block, Picture)
    return made


def _behind_head(blocks: Sequence[Block]) -> list[Block]:
    """The blocks without the sentences that they begin with: what was inspected, and warnings, come before pictures."""
    return list(itertools.dropwhile(lambda block: isinstance(block, Sentence), blocks))


def anchor(title: str) -> str:
    """The name of a section in an address.

    >>> anchor("hessian: a <b>.pt")
    'hessian-a-b-pt'
    """
    return re.sub(r"[^a-z0-9]+", "-", printable(title).lower()).strip("-") or "section"


def svg(block: Picture) -> _Script:
    """The picture as inline SVG, whose texts are escaped where they are written."""
    if isinstance(block, Chart):
        return _Script(chart.svg(block))
    return _Script(bars.svg(block) if isinstance(block, Bars) else heat_map.svg(block))


def _longest_word(cell: Cell) -> int:
    """Letters that a cell is wide at least, so that no short word is cut."""
    return min(_WORD, max(map(len, text(cell).split()), default=0))


def _sort_key(cell: Cell) -> _Script:
    """The number that a cell stands for, in full."""
    value = cell.value if isinstance(cell, Measured) else cell
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return _Script("")
    return _Script(f' data-value="{value!r}"')
