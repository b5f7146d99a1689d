"""In a section of a page what was inspected, and warnings about it, stand above the pictures."""

from curvcli.report.data import Block, Chart, Facts, Section, Sentence, Series
from curvcli.report.page.html import Page, render


def test_warnings_do_not_wait_below_the_charts() -> None:
    """Sentences that an answer begins with come first, others stay where they are."""
    found: list[Block] = [
        Sentence("the network is a guess"),
        Facts([("a figure", 1.0)]),
        Sentence("said behind the figures"),
        Chart("a drawing", "x", [Series("s", [0.0, 1.0], [1.0, 2.0])]),
    ]
    page = Page(title="t", sections=[Section("s", None, found)], provenance=Facts([]))
    body = render(page, static=True).partition("<body>")[2]
    words = ("the network is a guess", "a drawing", "a figure", "said behind the figures")
    places = [body.index(word) for word in words]
    assert places == sorted(places)
    assert all(body.count(word) == 1 for word in words[:1] + words[2:])
