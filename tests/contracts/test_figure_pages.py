"""The pages of figures have what they promise, with measured values; the gallery shows what the answers say."""

import importlib.util
import json
import re
from types import ModuleType

import pytest

from curvcli.analyses.registry import get
from curvcli.report.data import Picture
from curvcli.report.figure import pictures
from tests.oracles.program import ROOT
from tests.report.screens import recorded

FOLDER = ROOT / "docs" / "figures"


def script(name: str) -> ModuleType:
    """A script of the docs."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TYPICAL = script("typical")


@pytest.mark.parametrize("page", TYPICAL.FIGURES)
def test_a_page_has_words_formula_values_advice_and_source(page: str) -> None:
    """And names the command that gives the figure; each column has values of several networks."""
    text = (FOLDER / f"{page}.md").read_text("utf-8")
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads == ["Formula", "Typical values", "What to do", "Source"]
    assert "`curvcli " in text or "first line of every answer" in text
    rows = re.findall(r"^\| `\w+`: .* \|$", text, re.MULTILINE)
    assert len(rows) >= (1 if page == "noise-scale" else 3)


def test_every_page_is_in_the_list() -> None:
    listed = re.findall(r"\]\(([\w-]+)\.md\)", (FOLDER / "index.md").read_text("utf-8"))
    assert set(listed) == set(TYPICAL.FIGURES) == {p.stem for p in FOLDER.glob("*.md")} - {"index"}


def test_typical_values_are_those_that_are_measured() -> None:
    """Of one network, again: each interval meets the one that is written down."""
    written = json.loads(TYPICAL.RECORD.read_text("utf-8"))["networks"]["linear_regression"]
    found = TYPICAL.measured("linear_regression", ("hessian", "taylor"))
    assert len(found) > 5
    for path, (value, low, high, _) in found.items():
        # A bound, and a difference that is rounding, are no estimates: other ones on other machines hold as well.
        if ".reach." in path or path.endswith("hvp_check"):
            continue
        before, bottom, top, _ = written[path]
        if isinstance(value, float) and None not in (low, high, bottom, top):
            assert low <= top, path
            assert bottom <= high, path
        elif not isinstance(value, float):
            assert value == before


def test_the_gallery_shows_every_picture_of_its_answers() -> None:
    """Titles stand in the files as comments beside the letters that are drawn."""
    gallery = script("gallery")
    assert (ROOT / "docs" / "gallery.md").read_text("utf-8") == gallery.page()
    assert {p.stem for p in gallery.FOLDER.glob("*.svg")} == set(gallery.SHOWN)
    for name in gallery.SHOWN:
        drawn = (gallery.FOLDER / f"{name}.svg").read_text("utf-8")
        envelope = recorded(name)
        for block in pictures(get(envelope.command).view(envelope.result)):
            assert isinstance(block, Picture)
            assert f"<!-- {block.title} -->" in drawn, (name, block.title)


def test_the_picture_of_the_readme_is_what_the_command_says() -> None:
    """Drawn again, it has the same words in the same order; digits, and how many are shown, differ between machines."""

    def words(svg: str) -> str:
        shown = re.sub(r"&#160;", " ", re.sub(r"<[^>]*>", "\n", svg.partition("</style>")[2]))
        return re.sub(r" +", " ", re.sub(r"\d[\d.]*(e-?\d+)?", "#", shown))

    assert "![" in (ROOT / "README.md").read_text("utf-8")
    drawn = (ROOT / "docs" / "hessian.svg").read_text("utf-8")
    assert words(script("picture").picture()) == words(drawn)
