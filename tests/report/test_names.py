"""Names in little room: whatever is cut, different names stay different, in every place that shows them."""

import re
from html import unescape
from itertools import product
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from curvcli.report import bars, heat_map
from curvcli.report.data import BarGroup, Bars, Chart, Facts, HeatMap, Section, Series
from curvcli.report.figure import draw
from curvcli.report.names import shortened
from curvcli.report.page import plotly
from curvcli.report.page.html import Page, render
from tests.report.browser import Browser, chromium

needs_browser = pytest.mark.skipif(
    chromium() is None, reason="there is no Chromium, and CHROMIUM names none"
)
# Of a BERT: what differs stands in the middle, and the ends are alike.
LAYERS = [
    f"encoder.layer.{i}.{part}.{end}"
    for i, part, end in product(
        range(12), ("attention.self", "attention.output", "output"), ("dense", "LayerNorm")
    )
]


def test_names_are_cut_in_their_middle_and_stay_apart() -> None:
    """Names keep the width that is asked for where it can tell them apart."""
    assert (
        shortened(["layers.3.block.linear10"], 15)["layers.3.block.linear10"] == "layers…linear10"
    )
    same = [f"encoder.layers.{i}.attention.weight" for i in range(12)]
    short = shortened(same, 12)
    assert len(set(short.values())) == 12
    assert all(s.endswith("weight") or "…" in s for s in short.values())
    assert shortened(["fc1", "fc2"], 3) == {"fc1": "fc1", "fc2": "fc2"}


def test_numbers_of_layers_and_last_words_stay_whole() -> None:
    """In 26 letters, less than half of what they have, each still says which layer and which part it is."""
    short = shortened(LAYERS, 26)
    assert len(set(short.values())) == len(LAYERS)
    for name, told in short.items():
        assert len(told) <= 26
        assert told.split(".")[-1] == name.split(".")[-1]
        assert name.split(".")[2] in re.findall(r"\d+", told)


@pytest.mark.parametrize("where", ["page", "drawing", "file"])
def test_rows_of_a_picture_have_different_names(where: str) -> None:
    """Layers of a heat map, bars and curves of a legend, in the page, the drawing of a static page, and a file."""
    places = [float(i) for i in range(len(LAYERS))]
    cells = HeatMap(
        "m", "", "", "v", [0.0], places, [[p] for p in places], x_names=["a"], y_names=LAYERS,
        texts=[[name] for name in LAYERS],
    )  # fmt: skip
    named = Bars("b", "v", LAYERS, [BarGroup("g", places)])
    curves = [Series(f"{name}.{'weight' * 5}", [0.0, 1.0], [0.0, 1.0]) for name in LAYERS[:9]]
    legend = Chart("c", "x", curves)
    if where == "page":
        told = [plotly.figure(b)["layout"]["yaxis"]["ticktext"] for b in (cells, named)]
        told.append([d["name"] for d in plotly.figure(legend)["data"]])
    elif where == "drawing":
        drawn = (heat_map.svg(cells), bars.svg(named))
        texts = [re.findall(r"<text[^>]*>([^<]*)<", d) for d in drawn]
        told = [[t for text in found if len(t := unescape(text)) > 8] for found in texts]
    else:
        axes = [draw(Figure().subplots(), block) for block in (cells, named)]
        told = [[t.get_text() for t in a.get_yticklabels()] for a in axes]
    for found in told:
        assert len(found) == len(set(found))
        assert len(found) >= len(curves)


@needs_browser
def test_names_of_curves_do_not_lie_on_one_another(tmp_path: Path) -> None:
    """In the legend of a drawing each ends before the next one begins, and within the drawing."""
    curves = [Series(name, [0.0, 1.0], [0.0, 1.0]) for name in (*LAYERS[:4], "a", "b" * 200)]
    cells = HeatMap(
        "m", "", "", "decades from the median", [0.0], [0.0, 1.0], [[1.0], [2.0]], x_names=["a"],
        y_names=["b", "c"], texts=[["1"], ["2"]],
    )  # fmt: skip
    section = Section("s", None, [Chart("c", "x", curves), cells])
    file = tmp_path / "page.html"
    file.write_text(render(Page(title="t", sections=[section], provenance=Facts([])), static=True))
    with Browser(tmp_path) as browser:
        browser.open(file, 1000)
        boxes = browser.run(
            "[...document.querySelectorAll('svg text[font-size=\"13\"]')].map(e => { const b ="
            " e.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]; })"
        )
        frame = browser.run(
            "(b => [b.right, b.bottom])(document.querySelector('svg').getBoundingClientRect())"
        )
        beyond = browser.run(
            "[...document.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().right >"
            " e.ownerSVGElement.getBoundingClientRect().right).map(e => e.textContent)"
        )
    assert beyond == []
    assert len(boxes) == len(curves)
    for i, (left, right, top, bottom) in enumerate(boxes):
        assert right <= frame[0]
        assert bottom <= frame[1] + 4  # below the last line there is room for what hangs down
        for other in boxes[:i]:
            assert other[1] < left or other[3] <= top + 2 or other[0] > right
