"""How a table fits a width: bars shrink, headings and texts fold between words, names are shortened, columns leave."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.cells import cell_len

from curvcli.errors import printable
from curvcli.report import names as names_
from curvcli.report.data import Bar, Column, Table
from curvcli.report.numbers import BAR, text

# Eight characters of eight eighths still tell sixty-four lengths apart.
_SHORTEST_BAR = 8
# Names keep so many characters before a column leaves, and so many when nothing is left to leave.
_NAME, _SHORTEST_NAME = 16, 9
# Characters between columns.
GAP = 2
# A value and its error, or a sign and its number, stay on one line.
_WORD = re.compile(r"(\s*)((?:[≥>≤<±] )?\S+(?: ± \S+)*)")


class Fitted(NamedTuple):
    """A table that fits: indices of the columns that stay, their widths, headings and cells as lines of text."""

    columns: list[int]
    widths: list[int]
    headings: list[list[str]]
    rows: list[list[list[str]]]
    left_out: list[str]
    """Headings of the columns that there is no room for."""
    above: bool
    """Whether each name of the first column has a line of its own, above the figures of its row."""


def fitted(table: Table, width: int, bar: Callable[[float, int], str]) -> Fitted:
    """The table in at most ``width`` characters, as far as its first column and the one figure beside it allow.

    Args:
        table: any.
        width: of the screen.
        bar: (share, characters) -> a bar.
    """
    cells = [
        [
            None if isinstance(row[i], Bar) else printable(text(row[i]))
            for row in table.rows
        ]
        for i in range(len(table.columns))
    ]  # fmt: skip
    shapes = [_Shape(column, cells[i]) for i, column in enumerate(table.columns)]
    kept, least, above = _kept(table.columns, shapes, width)
    room = width - sum(least) - GAP * (len(kept) - 1)
    widths = []
    for place, index in enumerate(kept):
        natural = least[place] if above and not place else shapes[index].natural
        wider = max(0, min(natural - least[place], room))
        widths.append(least[place] + wider)
        room -= wider
    rows: list[list[list[str]]] = [[] for _ in table.rows]
    for place, index in enumerate(kept):
        wide = width if above and not place else widths[place]
        for row, lines in zip(rows, shapes[index].lines(wide), strict=True):
            row.append(lines)
    for row, raw in zip(rows, table.rows, strict=True):
        for place, index in enumerate(kept):
            cell = raw[index]
            if isinstance(cell, Bar):
                row[place] = [bar(cell.share, min(BAR, widths[place]))]
    headings = [
        folded(printable(table.columns[i].name), w or width) or [""]
        for i, w in zip(kept, widths, strict=True)
    ]
    left_out = [table.columns[i].name for i in range(len(table.columns)) if i not in kept]
    return Fitted(kept, widths, headings, rows, [name for name in left_out if name], above)


class _Shape:
    """What a column needs, and its cells at a width."""

    def __init__(self, column: Column, cells: Sequence[str | None]) -> None:
        self._column = column
        self._cells = cells
        self.bars = None in cells
        # Where all cells are texts, words may be put on lines of their own.
        self._texts = [cell or "" for cell in cells]
        name = printable(column.name)
        longest = max(map(cell_len, self._texts), default=0)
        self.natural = max(cell_len(name), BAR if self.bars else longest)
        self._heading = max(map(cell_len, name.split()), default=0)

    def least(self, names: int) -> int:
        """Width that the column cannot do without, with names of ``names`` characters."""
        if self.bars:
            return max(_SHORTEST_BAR, self._heading)
        if self._column.numeric:
            return max([self._heading, *map(cell_len, self._texts)])
        found = self._texts
        if self._column.folds:
            found = [word for cell in found for word in cell.split()]
        return max([self._heading, *map(cell_len, shortened(found, names).values())])

    def lines(self, width: int) -> list[list[str]]:
        """Each cell as lines of at most ``width`` characters."""
        if self._column.numeric or self.bars:
            return [[cell] for cell in self._texts]
        if not self._column.folds:
            short = shortened(self._texts, width)
            return [[short[cell]] for cell in self._texts]
        short = shortened([word for cell in self._texts for word in cell.split()], width)
        return [
            folded(re.sub(r"\S+", lambda m: short[m[0]], cell), width) or [""]
            for cell in self._texts
        ]


def _kept(
    columns: Sequence[Column], shapes: Sequence[_Shape], width: int
) -> tuple[list[int], list[int], bool]:
    """The columns that stay, the least width of each, and whether the names stand above their rows."""
    kept = list(range(len(columns)))
    # Those of the highest rank leave first, of one rank the rightmost; the first column stays.
    leaving = sorted(kept[1:], key=lambda i: (columns[i].rank + shapes[i].bars, i))
    while True:
        essential = not leaving or columns[leaving[-1]].rank == 0
        for names in (_NAME, _SHORTEST_NAME) if essential else (_NAME,):
            least = [shapes[i].least(names) for i in kept]
            if sum(least) + GAP * (len(kept) - 1) <= width:
                return kept, least, False
        if essential and sum(least[1:]) + GAP * (len(kept) - 1) <= width:
            return kept, [0, *least[1:]], True
        if len(leaving) < 2:  # the name and its figure: the terminal may wrap them
            return kept, least, False
        kept.remove(leaving.pop())


def shortened(names: Sequence[str], width: int) -> dict[str, str]:
    """Each name in at most ``width`` characters, of which wide ones count twice; see `names.shortened`."""
    return names_.shortened(names, width, cell_len)


def longest_word(raw: str) -> int:
    """Characters of what `folded` keeps together."""
    return max((cell_len(word) for _, word in _WORD.findall(raw)), default=0)


def folded(raw: str, width: int) -> list[str]:
    """Lines of whole words, numbers with their errors together; a word that is wider has a line of its own."""
    lines: list[str] = []
    line = ""
    for space, whole in _WORD.findall(raw):
        parts = [whole] if cell_len(whole) <= width else whole.split(" ")
        for gap, word in zip([space, *[" "] * len(parts)], parts, strict=False):
            if line and cell_len(line + gap + word) > width:
                lines.append(line)
                line = word
            else:
                line += (gap if line or not lines else "") + word
    return [*lines, line] if line else lines
