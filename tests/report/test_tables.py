"""On a screen of any width no number and no name is broken over two lines, and no line is longer than the screen."""

import random
import re
import string
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from curvcli.report.colours import BAD
from curvcli.report.data import Bar, Block, Cell, Column, Facts, Measured, Sentence, State, Table
from curvcli.report.numbers import text
from curvcli.report.text import terminal
from curvcli.report.text.layout import fitted, folded
from tests.report.screens import GOLDEN, SHOWN, WIDTHS, recorded, screen


@pytest.mark.parametrize("name", SHOWN)
def test_screens_are_the_recorded_ones(name: str) -> None:
    """Every command at five widths; `python -m tests.report.screens` writes them again after a change that is meant."""
    envelope = recorded(name)
    found = "\n".join(f"=== {width} columns ===\n{screen(envelope, width)}" for width in WIDTHS)
    assert found == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHOWN)
def test_no_line_of_a_recorded_screen_is_longer_than_the_screen(name: str) -> None:
    pages = re.split(
        r"=== (\d+) columns ===\n", (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    )
    for width, page in zip(pages[1::2], pages[2::2], strict=True):
        # A single word, such as the path of a command to copy, is left whole.
        long = [line for line in page.split("\n") if cell_len(line) > int(width) and " " in line]
        assert not long


def shown(blocks: list[Block], width: int) -> list[str]:
    buffer = StringIO()
    terminal.render(Console(file=buffer, width=width), blocks, [])
    return [line.rstrip() for line in buffer.getvalue().split("\n")]


def name(draw: random.Random) -> str:
    parts = [
        "".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 12)))
        + str(draw.randint(0, 30))
        for _ in range(draw.randint(1, 5))
    ]
    return ".".join(parts)


def cell(draw: random.Random, kind: str) -> Cell:
    scale = 10.0 ** draw.randint(-9, 9)
    made: dict[str, Cell] = {
        "number": draw.gauss(0, scale),
        "measured": Measured(draw.gauss(0, scale), abs(draw.gauss(0, scale * 1e-3))),
        "count": draw.randint(0, 10**9),
        "state": draw.choice([State("VIOLATED", "bad"), State("holds", "good")]),
        "bar": Bar(draw.random()),
        "text": " ".join(name(draw) for _ in range(draw.randint(1, 6))),
    }
    return made[kind]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_cell_is_split_or_lost(width: int) -> None:
    """Of random tables, each number and state of a column that stays is whole; each column that leaves is named."""
    draw = random.Random(width)
    for _ in range(60):
        kinds = [
            "name",
            *draw.choices(
                ["number", "measured", "count", "state", "bar", "text"], k=draw.randint(1, 9)
            ),
        ]
        columns = tuple(
            Column(
                f"c{i} head",
                numeric=k in ("number", "measured", "count"),
                rank=draw.randint(0, 3),
                folds=k == "text",
            )
            for i, k in enumerate(kinds)
        )
        names = list({name(draw): None for _ in range(draw.randint(1, 8))})
        rows = [(n, *(cell(draw, k) for k in kinds[1:])) for n in names]
        table = Table("title", columns, rows, "caption")
        found = fitted(table, width, lambda share, full: "█" * round(share * full))
        assert sum(found.widths) + 2 * (len(found.widths) - 1) <= width
        assert {columns[i].name for i in found.columns} | set(found.left_out) == {
            c.name for c in columns
        }
        lines = shown([table], width)
        assert max(map(cell_len, lines)) <= width
        firsts = [row[0][0] for row in found.rows]
        assert len(set(firsts)) == len(names)
        for row, cells in zip(rows, found.rows, strict=True):
            for place, index in enumerate(found.columns):
                if kinds[index] not in ("text", "bar", "name"):
                    assert cells[place] == [text(row[index])]
                    assert any(text(row[index]) in line for line in lines)


def test_the_least_important_columns_leave_first() -> None:
    """Those of the highest rank, of one rank the rightmost, and the caption says so."""
    columns = (
        Column("name", numeric=False),
        *(Column(n, rank=r) for n, r in (("a", 2), ("b", 1), ("c", 1), ("d", 0))),
    )
    table = Table("t", columns, [("layer", *(1234567.0,) * 4)])
    width = len("layer") + 3 * (2 + len("1.235e+06"))
    lines = shown([table], width)
    assert lines[1].split() == ["name", "b", "c", "d"]
    assert "No room for a" in " ".join(lines)
    assert shown([table], width - 1)[1].split() == ["name", "b", "d"]


def test_names_stand_above_where_two_figures_are_asked_for() -> None:
    """A comparison is not one without its second column: no figure that a row is about leaves."""
    columns = (
        Column("figure", numeric=False),
        Column("A", rank=0),
        Column("B", rank=0),
        Column("C"),
    )
    rows = [("largest eigenvalue", Measured(14.3423, 9e-5), Measured(14.9431, 1e-4), 1.0)]
    lines = shown([Table("t", columns, rows)], 36)
    assert lines[1:3] == ["figure", "                A                B"]
    assert lines[4:6] == ["largest eigenvalue", "  14.3423 ± 9e-05  14.9431 ± 1e-04"]
    assert "No room for C" in lines[6]


def test_bars_shrink_before_names_and_columns() -> None:
    table = Table(
        "t",
        (Column("layer", numeric=False), Column("", numeric=False), Column("x")),
        [("encoder.linear10", Bar(1.0), 1.5)],
    )
    assert fitted(table, 60, lambda s, w: "#" * w).rows[0][1] == ["#" * 20]
    tight = fitted(table, 33, lambda s, w: "#" * w)
    assert (tight.rows[0][0], len(tight.rows[0][1][0])) == (["encoder.linear10"], 8)


def test_the_caption_of_bars_leaves_with_them() -> None:
    """A narrow screen shows the table's own caption only, a page both."""
    columns = (Column("name", numeric=False), Column("value", rank=0), Column("", numeric=False))
    table = Table(
        "title", columns, [("a_long_name_that_stays", "1.23456789", Bar(0.5))], "own", "bars: log"
    )
    assert "own; bars: log" in shown([table], 60)
    narrow = shown([table], 36)
    assert "own" in narrow
    assert not any("bars" in line or "█" in line for line in narrow)


def test_a_value_and_its_error_stay_together() -> None:
    assert folded("λ 1.25 ± 0.01 here", 13) == ["λ 1.25 ± 0.01", "here"]
    assert folded("λ is 1.25 ± 0.01", 12) == ["λ is", "1.25 ± 0.01"]


@pytest.mark.parametrize("width", [40, 60, 200])
def test_facts_and_sentences_use_the_whole_screen_and_no_more(width: int) -> None:
    long = "one two three four five " * 20
    lines = shown([Facts([("a label of some words", long), ("b", 1.5)]), Sentence(long)], width)
    assert width - 6 <= max(map(cell_len, lines)) <= width
    assert "".join(lines).replace(" ", "").count("onetwothreefourfive") == 40


def test_a_sentence_is_coloured_as_a_whole() -> None:
    """Not letter by letter, which programs that read a terminal could not search."""
    buffer = StringIO()
    console = Console(file=buffer, force_terminal=True, color_system="truecolor", width=80)
    terminal.render(console, [Table("A title", (Column("x"),), [(1,)])], [])
    assert "A title" in buffer.getvalue()


def test_states_have_colours_and_without_colour_their_words() -> None:
    table = Table("t", (Column("", numeric=False),), [(State("VIOLATED", "bad"),)])
    buffer = StringIO()
    terminal.render(
        Console(file=buffer, force_terminal=True, color_system="truecolor", width=80), [table], []
    )
    red = ";".join(str(int(BAD[i : i + 2], 16)) for i in (1, 3, 5))
    assert f"\x1b[1;38;2;{red}mVIOLATED" in buffer.getvalue()
    assert "VIOLATED" in shown([table], 80)
