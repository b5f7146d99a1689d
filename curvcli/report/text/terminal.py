"""Blocks on a terminal: no number and no name is ever broken over two lines."""

from collections.abc import Sequence
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from curvcli.errors import printable
from curvcli.report import bars, heat_map
from curvcli.report.chart import axis_name, draw
from curvcli.report.colours import ATTENTION, CURVES, GOOD, LEVELS, MAP, NOTE
from curvcli.report.data import (
    MARKS,
    Bar,
    Bars,
    Block,
    Cards,
    Chart,
    Facts,
    Finding,
    Headline,
    HeatMap,
    Section,
    Sentence,
    State,
    Table,
)
from curvcli.report.numbers import bar, text
from curvcli.report.text.layout import GAP, Fitted, fitted, folded, longest_word, shortened

_TONES = {"good": GOOD, "plain": "", "bad": ATTENTION}
_SEVERITIES = {"error": LEVELS["bad"], "warning": ATTENTION, "note": NOTE}
_SIGNS = {"error": "✗", "warning": "!", "note": "·"}
# A chart is as wide as the screen up to here: beyond, curves are only flatter.
_WIDEST_CHART = 160


def render(
    console: Console,
    blocks: Sequence[Block],
    findings: Sequence[Finding],
    headline: Headline | None = None,
) -> None:
    """Print the headline, the blocks and then the findings."""
    if headline is not None:
        style = LEVELS[headline.level]
        _say(console, [(f"{MARKS[headline.level]} ", f"bold {style}"), (headline.sentence, "bold")])
        console.print()
    shown = [b for b in blocks if not (isinstance(b, Bars | HeatMap) and b.tabled)]
    for index, block in enumerate(shown):
        if index and not isinstance(block, Sentence):
            console.print()
        _block(console, block)
    if findings:
        console.print()
    for finding in findings:
        style = _SEVERITIES[finding.severity]
        _say(
            console,
            [
                (f"{_SIGNS[finding.severity]} {finding.severity} ", style),
                (finding.message, ""),
                (f"  [{finding.rule}]", "dim"),
            ],
        )


def _block(console: Console, block: Block) -> None:
    if isinstance(block, Sentence):
        _say(console, [(block.text, _TONES[block.tone])])
    elif isinstance(block, Facts):
        _facts(console, block)
    elif isinstance(block, Chart):
        _chart(console, block)
    elif isinstance(block, HeatMap):
        _map(console, block)
    elif isinstance(block, Bars):
        _bars(console, block)
    elif isinstance(block, Cards):
        _cards(console, block)
    elif isinstance(block, Section):
        _section(console, block)
    else:
        _table(console, block)


def _cards(console: Console, block: Cards) -> None:
    for card in block.cards:
        mark = (f"{MARKS[card.headline.level]} ", f"bold {LEVELS[card.headline.level]}")
        _say(console, [mark, (f"{card.label}: ", "bold"), (card.headline.sentence, "")])


def _section(console: Console, block: Section) -> None:
    """Under a rule with its title."""
    title = printable(block.title)
    line = "─" * max(0, console.width - cell_len(title) - 4)
    _print(console, Text(f"── {title} {line}", style="bold"))
    render(console, block.blocks, block.findings, block.headline)


def _bars(console: Console, block: Bars) -> None:
    """A line for each bar, one colour a group."""
    _say(console, [(block.title, "bold")])
    _print(console, Text(axis_name(block.value_label, block.log), style="dim"))
    for name, group, drawn in bars.rows(block, console.width):
        line = Text(f"{name}  ")
        line.append(drawn, style=CURVES[group % len(CURVES)])
        _print(console, line)
    if len(block.groups) > 1:
        legend = Text()
        for k, group_ in enumerate(block.groups):
            legend.append(f"{'' if not k else '   '}■ ", style=CURVES[k % len(CURVES)])
            legend.append(printable(group_.name))
        _print(console, legend)


def _say(console: Console, parts: Sequence[tuple[str, str]]) -> None:
    """Text in several styles, folded between words."""
    whole = Text()
    for part, style in parts:
        whole.append(printable(part), style=style)
    place = 0
    for line in folded(whole.plain, console.width):
        place = whole.plain.index(line, place)
        _print(console, whole[place : place + len(line)])
        place += len(line)


def _print(console: Console, line: Text) -> None:
    # A word that is wider than the screen goes to the terminal whole, which keeps it together for copying.
    console.print(line, highlight=False, crop=False, no_wrap=True, overflow="ignore")


def _chart(console: Console, block: Chart) -> None:
    """Lines of braille, one colour a curve; without colour the marks in the legend tell them apart."""
    _say(console, [(block.title, "bold")])
    width = min(console.width, _WIDEST_CHART)
    drawing = draw(block, width)
    if drawing.heading:
        _print(console, Text(drawing.heading, style="dim"))
    for row in drawing.rows:
        line = Text(row.label, style="dim")
        for owner, cells in groupby(row.cells, key=lambda cell: cell[1]):
            style = CURVES[owner % len(CURVES)] if owner >= 0 else ""
            line.append("".join(character for character, _ in cells), style=style)
        _print(console, line)
    for axis in drawing.axis:
        _print(console, Text(axis, style="dim"))
    used = 0
    legend = Text()
    for index, series in enumerate(block.series):
        name = printable(series.name)
        name = shortened([name], max(3, width - drawing.indent - 3))[name]
        if used and used + len(name) + 3 > width:
            _print(console, legend)
            used = 0
        if not used:
            legend = Text(" " * drawing.indent)
            used = drawing.indent
        legend.append("━━ " if index == 0 else "·· ", style=CURVES[index % len(CURVES)])
        legend.append(f"{name}   " if index + 1 < len(block.series) else name)
        used += len(name) + 6
    _print(console, legend)


def _map(console: Console, block: HeatMap) -> None:
    """Shades with their colours; letters for spots."""
    _say(console, [(block.title, "bold")])
    drawn = heat_map.shaded(block, console.width)
    _print(console, Text(drawn.heading, style="dim"))
    for label, cells in drawn.rows:
        line = Text(label, style="dim")
        for character, same in groupby(cells):
            shade = heat_map.SHADES.find(character)
            style = MAP[shade] if shade >= 0 else "bold"
            line.append("".join(same), style=style)
        _print(console, line)
    for axis in drawn.axis:
        _print(console, Text(axis, style="dim"))
    entries = [f"{block.value_label}:", *drawn.legend]
    room, told = console.width - drawn.indent, ""
    for entry in entries:
        if told and len(told) + 2 + len(entry) > room:
            _print(console, Text(" " * drawn.indent + told))
            told = ""
        told = f"{told}  {entry}" if told else entry
    _print(console, Text(" " * drawn.indent + told))


def _facts(console: Console, block: Facts) -> None:
    """Labels and values side by side."""
    if block.title:
        _say(console, [(block.title, "bold")])
    labels = [printable(label) for label, _ in block.rows]
    values = [text(value) for _, value in block.rows]
    longest = max(map(cell_len, labels), default=0)
    word = max(map(longest_word, labels), default=0)
    figure = min(max(map(longest_word, values), default=0), console.width // 2)
    room = min(longest, max(word, console.width - GAP - figure))
    rest = max(1, console.width - room - GAP)
    for label, value, (_, cell) in zip(labels, values, block.rows, strict=True):
        short = shortened(value.split(), rest)
        lines = folded(" ".join(short.get(word, word) for word in value.split(" ")), rest)
        style = LEVELS[cell.level] if isinstance(cell, State) else ""
        _row(console, [(folded(label, room), room, "dim", False), (lines, rest, style, False)])


_Cell = tuple[list[str], int, str, bool]
"""Lines, width, style, whether they are aligned right."""


def _row(console: Console, cells: Sequence[_Cell]) -> None:
    """Cells of one or more lines side by side."""
    for index in range(max(len(lines) for lines, *_ in cells)):
        line = Text()
        for place, (lines, width, style, right) in enumerate(cells):
            part = lines[index] if index < len(lines) else ""
            blank = " " * max(0, width - cell_len(part))
            line.append(" " * GAP * (place > 0))
            line.append(blank * right)
            line.append(part, style=style)
            line.append(blank * (not right))
        line.rstrip()
        _print(console, line)


def _table(console: Console, block: Table) -> None:
    """Title and caption as wide as the screen, the columns that there is room for between them."""
    _say(console, [(block.title, "bold")])
    found = fitted(block, console.width, bar)
    right = [block.columns[i].numeric for i in found.columns]
    # Headings stand on the line above the rows.
    height = max(map(len, found.headings))
    headings = [[""] * (height - len(lines)) + lines for lines in found.headings]
    _table_row(console, found, headings, ["bold"] * len(right), right)
    _print(console, Text("─" * (sum(found.widths) + GAP * (len(found.widths) - 1)), style="dim"))
    for row, cells in zip(block.rows, found.rows, strict=True):
        styles = [
            LEVELS[cell.level] if isinstance(cell := row[i], State) else "" for i in found.columns
        ]
        _table_row(console, found, cells, styles, right)
    shown = any(isinstance(row[i], Bar) for row in block.rows for i in found.columns)
    if caption := block.legend(bars=shown):
        _say(console, [(caption, "dim")])
    if found.left_out:
        names = ", ".join(found.left_out[:6])
        more = len(found.left_out) - 6
        names += f" and {more} more" if more > 0 else ""
        _say(console, [(f"No room for {names}: a wider screen or --format json has all.", "dim")])


def _table_row(
    console: Console,
    found: Fitted,
    cells: list[list[str]],
    styles: Sequence[str],
    right: Sequence[bool],
) -> None:
    """A row; its name on a line of its own where there is no room for it beside the figures."""
    if found.above:
        _row(console, [(cells[0], console.width, styles[0], False)])
        cells = [[""], *cells[1:]]
    _row(console, list(zip(cells, found.widths, styles, right, strict=True)))
