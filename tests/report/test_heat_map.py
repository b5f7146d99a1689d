"""Maps: values in their shades and colours, spots at their places, holes where nothing is known."""

import math
import re
from io import StringIO

import pytest
from rich.console import Console

from curvcli.report import heat_map
from curvcli.report.data import HeatMap, Spot
from curvcli.report.figure import draw, render
from curvcli.report.page.plotly import figure
from curvcli.report.text import terminal

X = [-1.0, 0.0, 1.0, 2.0]
Y = [0.0, 1.0, 2.0]


def plane(hole: bool = False) -> HeatMap:
    """The value is x + 1: five shades over 0 … 3, the same in every row."""
    values = [[x + 1 for x in X] for _ in Y]
    if hole:
        values[2][3] = math.nan
    spots = [Spot("here", 0.0, 0.0), Spot("<b>other</b>", 2.0, 2.0)]
    return HeatMap("A <map>", "x", "y", "loss", X, Y, values, spots, path=True)


def test_shades_grow_from_left_to_right() -> None:
    """A linear function is interpolated exactly: five bands of one width; spots have their letters."""
    drawn = heat_map.shaded(plane(), 70)
    for _, cells in drawn.rows[1:-1]:
        counts = [cells.count(shade) for shade in heat_map.SHADES]
        assert max(counts) - min(counts) <= 1
        assert list(cells) == sorted(cells, key=heat_map.SHADES.index)
    assert drawn.rows[0][1][-1] == "A"
    assert "O" in drawn.rows[-1][1]
    assert "A <b>other</b>" in drawn.legend


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_fit_the_screen(width: int) -> None:
    console = Console(width=width, file=StringIO())
    terminal.render(console, [plane(hole=True)], [])
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any("?" in line for line in lines)


def test_the_levels_of_a_logarithmic_map_are_a_geometric_series() -> None:
    block = HeatMap(
        "m", "x", "y", "v", [0.0, 1.0], [0.0, 1.0], [[1.0, 10.0], [10.0, 32.0]], log=True
    )
    edges = heat_map.levels(block)
    assert edges == pytest.approx([2.0, 4.0, 8.0, 16.0])


def test_a_page_has_a_cell_for_each_value_and_escapes_names() -> None:
    drawn = heat_map.svg(plane(hole=True))
    assert len(re.findall("<rect", drawn)) == 12 + 20
    assert "<b>" not in drawn
    assert "&lt;b&gt;other" in drawn
    assert drawn.count("#8884") == 1


def test_a_picture_of_a_map() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert render("t", [plane()], "png").startswith(b"\x89PNG")
    flat = HeatMap("flat", "x", "y", "v", X, Y, [[1.0] * 4] * 3)
    assert render("t", [flat], "svg").startswith(b"<?xml")


def test_rows_with_names_are_read_from_the_top_everywhere() -> None:
    """The first layer of a network stands above the last one: in the page, the drawing and the file."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib.figure import Figure

    names = ["first", "last"]
    block = HeatMap(
        "m", "", "", "v", [0.0], [0.0, 1.0], [[1.0], [2.0]], x_names=["a"], y_names=names,
        texts=[["1"], ["2"]],
    )  # fmt: skip
    drawn = heat_map.svg(block)
    labels = dict(re.findall(r'y="([-.0-9]+)"[^>]*>(first|last)<', drawn))
    assert [labels[y] for y in sorted(labels, key=float)] == names
    cells = re.findall(r'<rect[^>]* y="([-.0-9]+)"[^>]*><title>(first|last)', drawn)
    assert [name for _, name in sorted(cells, key=lambda c: float(c[0]))] == names
    axes = draw(Figure().subplots(), block)
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert figure(block)["layout"]["yaxis"]["autorange"] == "reversed"
