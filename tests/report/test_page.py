"""Pages are whole HTML, hold nothing that runs or fetches but their own two scripts, and draw each picture's data."""

import hashlib
import json
import math
import re
from base64 import b64encode
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from curvcli.errors import OutputError
from curvcli.report.data import (
    BarGroup,
    Bars,
    Block,
    Card,
    Cards,
    Chart,
    Column,
    Facts,
    Finding,
    Headline,
    HeatMap,
    Measured,
    Section,
    Sentence,
    Series,
    Spot,
    State,
    Table,
)
from curvcli.report.figure import draw
from curvcli.report.page import plotly
from curvcli.report.page.html import Page, fragment, render
from tests.report.browser import Browser, chromium

HOSTILE = (
    "<script>window.hurt = 1</script>", '"><img src=x onerror="window.hurt=1">', "</script><script>window.hurt=1",
    "javascript:window.hurt=1", "{{ 7 * 191 }}", "a & b < c > d", '<a href="https://example.org">x</a>',
    "' onmouseover='window.hurt=1", "\x1b[31mred", "--><!--", "]]>", "</style><style>*{display:none}",
)  # fmt: skip
NAN = float("nan")


def blocks(name: str) -> list[Block]:
    """Every kind of block, each text of which is the name."""
    x = [1.0, 2.0, 4.0]
    marks = ("line", "points", "stems", "bars")
    lines = [Series(name, x, [3.0, NAN, 1.0], [2.0, NAN, 0.5], [4.0, NAN, 2.0], mark) for mark in marks]  # type: ignore[arg-type]  # fmt: skip
    return [
        Sentence(name),
        Facts([(name, name), ("n", 3)], name),
        Table(name, (Column(name, numeric=False), Column("v")), [(State(name, "bad"), Measured(2.5, 0.1))], name),
        *(Chart(name, name, [line], name) for line in lines),
        Bars(name, name, [name, name], [BarGroup(name, [1.0, NAN], [0.1, 0.2]), BarGroup(name, [2.0, 3.0])]),
        HeatMap(name, name, name, name, x, x, [[1.0, 2.0, 3.0]] * 3, [Spot(name, 1.0, 1.0)]),
        HeatMap(
            name, "", "", name, [0.0], [0.0, 1.0], [[1.0], [NAN]], x_names=[name], y_names=[name, name],
            texts=[[name], [name]],
        ),
    ]  # fmt: skip


def page_of(name: str) -> Page:
    head = Headline("attention", name)
    finding = Finding(name, "warning", name, 1.0, 2.0, name)
    sections = [Section(name, head, blocks(name), [finding], [name], name, name)]
    cards = Cards([Card(name, head, name)])
    return Page(
        title=name, headline=head, lead=[cards], sections=sections, provenance=Facts([(name, name)])
    )


def parsed(text: str) -> Element:
    """The page's tree; what is no HTML5 is an error."""
    tree: Element = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)
    return tree


def scripts(tree: Element) -> list[Element]:
    return [e for e in tree.iter("script") if e.get("type") != "application/json"]


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the five megabytes of Plotly, which take a parser in Python a minute."""
    monkeypatch.setattr(plotly, "library", lambda: "const Plotly = {};")


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("static", [True, False])
def test_names_from_files_are_text_and_nothing_else(static: bool) -> None:
    """The tree with a hostile name has the elements and attributes of the tree with a plain one."""

    def shape(name: str) -> list[tuple[str, list[str]]]:
        return [
            (str(e.tag), sorted(e.keys()))
            for e in parsed(render(page_of(name), static=static)).iter()
        ]

    plain = shape("plain")
    for name in HOSTILE:
        assert shape(name) == plain, name


@pytest.mark.usefixtures("no_library")
def test_the_page_fetches_nothing_and_runs_only_its_own_scripts() -> None:
    for static in (True, False):
        tree = parsed(render(page_of("conv.weight"), static=static))
        for element in tree.iter():
            for key in ("src", "href", "action", "data", "srcset", "style"):
                value = element.get(key, "")
                assert "url" not in value
                assert key not in ("src", "srcset", "action") or not value
                assert key != "href" or value[:1] in ("", "#")
        assert len(scripts(tree)) == (0 if static else 2)
        policy = next(e for e in tree.iter("meta") if e.get("http-equiv")).get("content", "")
        assert policy.startswith("default-src 'none'")
        for script in scripts(tree):
            digest = hashlib.sha256((script.text or "").encode()).digest()
            assert b64encode(digest).decode() in policy


@pytest.mark.usefixtures("no_library")
def test_figures_hold_the_data_of_their_charts() -> None:
    text = render(page_of("conv.weight"))
    tree = parsed(text)
    holder = next(e for e in tree.iter("script") if e.get("type") == "application/json")
    figures = json.loads(holder.text or "")
    places = [e.get("data-figure") for e in tree.iter() if e.get("data-figure") is not None]
    assert sorted(places, key=lambda p: int(p or 0)) == [str(i) for i in range(len(figures))]
    charts = [
        f
        for f in figures
        if f["data"][-1].get("name") == "conv.weight" and f["layout"]["height"] == 360
    ]
    assert len(charts) == 4
    for figure in charts:
        assert figure["data"][-1]["x"] == [1.0, 2.0, 4.0]
        assert figure["data"][-1]["y"] == [3.0, None, 1.0]
    errors = charts[1]["data"][-1]["error_y"]
    assert (errors["array"][0], errors["arrayminus"][0]) == (1.0, 1.0)


def test_log_axes_are_offered_where_all_figures_are_positive() -> None:
    rising = Chart("c", "x", [Series("s", [1.0, 10.0], [2.0, 3.0])], log_y=True)
    crossing = Chart("c", "x", [Series("s", [-1.0, 10.0], [0.0, 3.0])])
    assert plotly.figure(rising)["logs"] == ["x", "y"]
    assert plotly.figure(rising)["layout"]["yaxis"]["type"] == "log"
    assert plotly.figure(crossing)["logs"] == []


def test_few_whole_numbers_have_a_tick_each() -> None:
    """Between the layers 0, 1 and 2 there is none; many numbers, or broken ones, have round ticks."""

    def step(*x: float) -> object:
        chart = Chart("c", "x", [Series("s", list(x), [1.0] * len(x))])
        return plotly.figure(chart)["layout"]["xaxis"].get("dtick")

    layers = Chart("c", "x", [Series("s", [0.0, 1.0, 2.0], [1.0, 2.0, 3.0])])
    assert {float(t) % 1 for t in draw(Figure().subplots(), layers).get_xticks()} == {0.0}
    assert step(0.0, 1.0, 2.0, NAN) == 1
    assert step(0.0, 100.0, 200.0) is None
    assert step(0.0, 0.5, 1.0) is None
    assert step(3.0) is None


def test_what_a_cell_sorts_by_is_the_whole_number() -> None:
    table = Table(
        "t", (Column("v"),), [(Measured(1234567.125, 1000.0),), (0.1,), ("text",), (math.inf,)]
    )
    cells = [
        e.get("data-value")
        for e in parsed(f"<!doctype html><title>t</title>{fragment([table], [])}").iter("td")
    ]
    assert cells == ["1234567.125", "0.1", None, None]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotly, "find_spec", lambda _: None)
    with pytest.raises(OutputError, match="plotly") as told:
        render(page_of("w"))
    assert "curvcli[report]" in (told.value.hint or "")
    assert "<svg" in render(page_of("w"), static=True)


needs_browser = pytest.mark.skipif(
    chromium() is None, reason="there is no Chromium, and CHROMIUM names none"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_each_figure_without_a_complaint(
    browser: Browser, tmp_path: Path, dark: bool
) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(page_of("layers.0." + "very_long_name." * 12 + "weight")), "utf-8")
    for width in (400, 1400):
        browser.open(file, width, dark=dark)
        assert browser.messages == []
        assert browser.run("document.documentElement.scrollWidth") <= width
        drawn = browser.run(
            "[...document.querySelectorAll('[data-figure]')]"
            ".map(e => e.querySelectorAll('.trace, .contour, .hm').length)"
        )
        assert len(drawn) == 7
        assert all(drawn)


@needs_browser
def test_a_browser_runs_nothing_that_a_name_says(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    for name in HOSTILE:
        file.write_text(render(page_of(name)), "utf-8")
        browser.open(file, 1000)
        assert browser.run("window.hurt") is None
        assert browser.run("document.querySelectorAll('img, a:not([href^=\"#\"])').length") == 0
        assert browser.messages == []


@needs_browser
def test_on_a_phone_words_stay_whole_and_tools_beside_names(
    browser: Browser, tmp_path: Path
) -> None:
    """No label is cut within a short word, and the tools of a figure do not lie on the names of its curves."""
    lines = [Series(name, [1.0, 2.0], [1.0, 2.0]) for name in ("of the layer", "up to the layer")]
    facts = Facts([("participation ratio", "exact on 16 Krylov vectors, 10 random vectors on the rest")])  # fmt: skip
    columns = (Column("tensor", numeric=False), *map(Column, "abcd"))
    table = Table("t", columns, [("fc1.weight", *[0.123456] * 4)])
    section = Section("s", None, [Chart("c", "depth", lines), facts, table])
    file = tmp_path / "page.html"
    file.write_text(render(Page(title="t", sections=[section], provenance=Facts([]))), "utf-8")
    browser.open(file, 400)
    lines_of = (
        "[...document.querySelectorAll('th[scope=row], .sortable td')].map(e => { const r = document.createRange();"
        " r.selectNodeContents(e); return [e.textContent, new Set([...r.getClientRects()].map(q => q.top)).size]; })"
    )
    assert all(count <= text.count(" ") + 1 for text, count in browser.run(lines_of))
    apart = (
        "(() => { const box = s => document.querySelector(s).getBoundingClientRect();"
        " return box('.legend').top >= box('.modebar-group').bottom; })()"
    )
    assert browser.run(apart)


@needs_browser
def test_headings_sort_and_buttons_change_axes(browser: Browser, tmp_path: Path) -> None:
    table = Table("t", (Column("v"),), [(3.0,), (1e-7,), (20.0,)])
    chart = Chart("c", "x", [Series("s", [1.0, 10.0], [2.0, 3.0])])
    page = Page(
        title="t",
        sections=[Section("s", None, [table, chart], command="curvcli x")],
        provenance=Facts([]),
    )
    file = tmp_path / "page.html"
    file.write_text(render(page), "utf-8")
    browser.open(file, 1000)
    first = "document.querySelector('table.sortable tbody td').textContent"
    click = "document.querySelector('table.sortable th button').click()"
    assert browser.run(first) == "3.000"
    assert browser.run(f"{click}; {first}") == "1.000e-07"
    assert browser.run(f"{click}; {first}") == "20.00"
    kind = "document.querySelector('.js-plotly-plot').layout.yaxis.type"
    assert browser.run(kind) == "linear"
    assert browser.run(f"document.querySelectorAll('.tools button')[1].click(); {kind}") == "log"


@needs_browser
def test_labels_of_log_axes_are_whole_numbers_that_do_not_overlap(
    browser: Browser, tmp_path: Path
) -> None:
    """No lone digit between powers of ten, and none on another, whatever the range; a linear axis has its own."""
    for decades in (0.2, 1.2, 1.8, 6.0, 30.0):
        ends = [3e-9, 3e-9 * 10**decades]
        chart = Chart("c", "x", [Series("s", ends, ends)], log_x=True, log_y=True)
        page = Page(title="t", sections=[Section("s", None, [chart])], provenance=Facts([]))
        file = tmp_path / "page.html"
        file.write_text(render(page), "utf-8")
        for width in (400, 1400):
            browser.open(file, width)
            for axis in "xy":
                script = (
                    f"[...document.querySelectorAll('.{axis}tick text')].map(e => {{ const b ="
                    " e.getBoundingClientRect(); return [e.textContent, b.left, b.right, b.top, b.bottom]; })"
                )
                labels = browser.run(script)
                assert len(labels) >= 2
                assert all("10" in text or "." in text or text == "1" for text, *_ in labels)
                first, last = (1, 2) if axis == "x" else (3, 4)
                spans = sorted((label[first], label[last]) for label in labels)
                assert all(a[1] <= b[0] + 1 for a, b in pairwise(spans)), (decades, axis, labels)
    browser.run("document.querySelectorAll('.tools button')[1].click()")
    assert browser.run("document.querySelectorAll('.ytick').length") > 3


@needs_browser
def test_a_shadow_shows_that_a_table_goes_on(browser: Browser, tmp_path: Path) -> None:
    """At the edge of a phone where columns are hidden, and nowhere beside a table that is whole."""
    columns = [Column("layer", numeric=False), *(Column(f"figure {i}") for i in range(12))]
    for count in (2, len(columns)):
        table = Table("t", tuple(columns[:count]), [("conv", *[1.5] * (count - 1))] * 4)
        page = Page(title="t", sections=[Section("s", None, [table])], provenance=Facts([]))
        file = tmp_path / "page.html"
        file.write_text(render(page, static=True), "utf-8")
        browser.open(file, 400)
        box = "document.querySelector('.wide').getBoundingClientRect()"
        right, top = browser.run(f"[{box}.right, {box}.top]")
        shot = tmp_path / "shot.png"
        browser.picture(shot, int(top), 40)
        shade = imread(shot)[20, int(right) - 2, :3].mean()
        assert (shade < 0.9) == (count > 2)


@needs_browser
def test_a_map_is_shown_as_a_surface_and_back(browser: Browser, tmp_path: Path) -> None:
    places = [-1.0, 0.0, 1.0]
    values = [[x * x + y * y for x in places] for y in places]
    plane = HeatMap("m", "a", "b", "loss", places, places, values, [Spot("the weights", 0.0, 0.0)])
    page = Page(title="t", sections=[Section("s", None, [plane])], provenance=Facts([]))
    file = tmp_path / "page.html"
    file.write_text(render(page), "utf-8")
    browser.open(file, 1000)
    kinds = "document.querySelector('.js-plotly-plot')._fullData.map(d => d.type).join()"
    click = "document.querySelector('.tools button').click()"
    assert browser.run(kinds) == "contour,scatter"
    assert browser.run(f"{click}; {kinds}") == "surface"
    assert browser.run(f"{click}; {kinds}") == "contour,scatter"
    # No script that the policy forbids; that there is no graphics card is none of the page's errors.
    assert not [m for m in browser.messages if "Content Security Policy" in m or "exception" in m]


def test_static_pages_are_small() -> None:
    """A tenth of a megabyte for ten pictures: a mail takes it."""
    text = render(page_of("conv.weight"), static=True)
    assert len(text) < 100_000
    assert len(re.findall("<svg", text)) == 7
