"""Blocks on a terminal: rich tables that never cut a number."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from curvcli.errors import printable
from curvcli.report.chart import draw
from curvcli.report.data import (
    ASCII_MARKS,
    MARKS,
    Bar,
    Block,
    Cell,
    Chart,
    Column,
    Facts,
    Finding,
    Headline,
    Sentence,
    Table,
)
from curvcli.report.numbers import BAR, bar, text

_LEVELS = {"good": "bold green", "attention": "bold yellow", "bad": "bold red"}
_TONES = {"good": "green", "plain": "", "bad": "yellow"}
_SEVERITIES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_CURVES = ("green", "magenta", "yellow", "cyan", "blue")
# Eight characters of eight eighths still tell sixty-four lengths apart.
_SHORTEST_BAR = 8
# Characters between columns, and where the table would be wider than the screen otherwise.
_GAP, _NARROW_GAP = 3, 2
_SIGNS = {"error": "✗", "warning": "!", "note": "·"}


def render(
    console: Console,
    blocks: Sequence[Block],
    findings: Sequence[Finding],
    headline: Headline | None = None,
) -> None:
    """Print the headline, the blocks and then the findings."""
    if headline is not None:
        marks = MARKS if console.encoding.lower().startswith("utf") else ASCII_MARKS
        line = Text(f"{marks[headline.level]} ", style=_LEVELS[headline.level])
        line.append(printable(headline.sentence), style="bold")
        console.print(line, highlight=False)
        console.print()
    for index, block in enumerate(blocks):
        if index and not isinstance(block, Sentence):
            console.print()
        # A table that cannot be narrower than the screen is left to the terminal to wrap: never cut.
        width = console.width
        bars = _bar_width(block, width)
        gap = _GAP if _least_width(block, bars) <= width else _NARROW_GAP
        console.width = max(width, _least_width(block, bars, gap))
        console.print(_block(block, bars, gap), highlight=False, crop=False)
        console.width = width
    if findings:
        console.print()
    for finding in findings:
        style = _SEVERITIES[finding.severity]
        line = Text(f"{_SIGNS[finding.severity]} ", style=style)
        line.append(f"{finding.severity} ", style=style)
        line.append(printable(finding.message))
        line.append(f"  [{finding.rule}]", style="dim")
        console.print(line, highlight=False)


def _block(block: Block, bars: int, gap: int) -> RenderableType:
    if isinstance(block, Sentence):
        return Text(printable(block.text), style=_TONES[block.tone])
    if isinstance(block, Facts):
        return _facts(block)
    if isinstance(block, Chart):
        return _chart(block)
    return _table(block, bars, gap)


def _chart(block: Chart) -> RenderableType:
    """Lines of braille, one colour a curve; without colour the marks in the legend tell them apart."""
    lines: list[RenderableType] = [Text(printable(block.title), style="bold")]
    drawing = draw(block)
    for row in drawing.rows:
        line = Text(row.label, style="dim")
        for character, owner in row.cells:
            line.append(character, style=_CURVES[owner % len(_CURVES)] if owner >= 0 else "")
        lines.append(line)
    lines.append(Text(drawing.axis, style="dim"))
    legend = Text(" " * drawing.indent)
    for index, series in enumerate(block.series):
        legend.append("━━ " if index == 0 else "·· ", style=_CURVES[index % len(_CURVES)])
        legend.append(printable(series.name) + "   ")
    lines.append(legend)
    return Group(*lines)


def _facts(block: Facts) -> RenderableType:
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in block.rows:
        grid.add_row(Text(printable(label)), Text(text(value)))
    return Group(Text(printable(block.title), style="bold"), grid) if block.title else grid


def _table(block: Table, bars: int, gap: int) -> RenderableType:
    table = RichTable(
        title=Text(printable(block.title), style="bold"),
        title_justify="left",
        caption=Text(block.caption, style="dim") if block.caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, gap - 2, 0, 1),
        pad_edge=False,
    )
    for index, column in enumerate(block.columns):
        table.add_column(
            Text(_heading(column, narrow=gap < _GAP)),
            justify="right" if column.numeric else "left",
            no_wrap=_rigid(block, index, column),
            min_width=_needed(block, index, column, bars, narrow=gap < _GAP),
            overflow="fold",
        )
    for row in block.rows:
        table.add_row(*(Text(_text(cell, bars)) for cell in row))
    return table


def _text(cell: Cell, bars: int) -> str:
    return bar(cell.share, bars) if isinstance(cell, Bar) else text(cell)


def _bar_width(block: Block, width: int) -> int:
    """Characters of a full bar: fewer where the table would be wider than the screen otherwise."""
    if not isinstance(block, Table):
        return BAR
    columns = sum(
        any(isinstance(row[i], Bar) for row in block.rows) for i in range(len(block.columns))
    )
    excess = _least_width(block, BAR) - width
    return max(_SHORTEST_BAR, BAR - max(0, excess) // columns - (excess > 0)) if columns else BAR


def _least_width(block: Block, bars: int, gap: int = _GAP) -> int:
    """Width below which a table would lose characters."""
    if not isinstance(block, Table):
        return 1
    narrow = gap < _GAP
    return sum(
        _needed(block, i, column, bars, narrow) + gap for i, column in enumerate(block.columns)
    )


def _rigid(block: Table, index: int, column: Column) -> bool:
    """Whether a column may not be wrapped: numbers and bars."""
    return column.numeric or any(isinstance(row[index], Bar) for row in block.rows)


def _heading(column: Column, narrow: bool) -> str:
    """The column's name, one word on each line where the table is wider than the screen otherwise."""
    name = printable(column.name)
    return name.replace(" ", "\n") if narrow else name


def _needed(block: Table, index: int, column: Column, bars: int, narrow: bool) -> int:
    """Width at which nothing in the column is cut; names may be folded at 12 characters, texts between words."""
    texts = [_text(row[index], bars) for row in block.rows]
    if narrow and not _rigid(block, index, column):
        texts = [word for each in texts for word in each.split()]
    longest = max(map(len, [*texts, *_heading(column, narrow).split("\n")]))
    return longest if _rigid(block, index, column) else min(longest, 12)
