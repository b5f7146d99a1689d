"""Charts draw their bands: as dots along both edges in text, as an area in SVG."""

import re

from curvcli.report.chart import as_text, svg
from curvcli.report.data import Chart, Series

X = [float(i) for i in range(40)]
LINE = [0.0, *[5.0] * 38, 10.0]


def chart(half: float | None, log_y: bool = False) -> Chart:
    """A line from 0 to 10 that is flat between, with a band of that half width."""
    edges = (
        ([v - half for v in LINE], [v + half for v in LINE]) if half is not None else (None, None)
    )
    return Chart("c", "x", [Series("y", X, LINE, *edges)], log_y=log_y)


def dots(text: str) -> int:
    return sum(bin(ord(c) - 0x2800).count("1") for c in text if 0x2800 < ord(c) <= 0x28FF)


def test_a_band_adds_dots_above_and_below_the_curve() -> None:
    plain, banded = as_text(chart(None)), as_text(chart(2.0))
    assert dots(banded) > dots(plain)
    rows = [
        i
        for i, (a, b) in enumerate(zip(plain.split("\n"), banded.split("\n"), strict=True))
        if a != b
    ]
    middle = next(i for i, row in enumerate(plain.split("\n")) if dots(row) > 40)
    assert min(rows) < middle < max(rows)


def test_a_band_is_an_area_of_the_page_within_its_frame() -> None:
    assert "<polygon" not in svg(chart(None))
    (corners,) = re.findall(r'<polygon points="([^"]+)"', svg(chart(1e9)))
    heights = [float(pair.split(",")[1]) for pair in corners.split()]
    assert len(heights) == 2 * len(X)
    # The frame: from 20 to 60 above the lower edge of 310.
    assert (min(heights), max(heights)) == (20.0, 250.0)


def test_a_band_below_zero_ends_at_the_edge_of_a_logarithmic_axis() -> None:
    (corners,) = re.findall(r'<polygon points="([^"]+)"', svg(chart(20.0, log_y=True)))
    assert all(20.0 <= float(pair.split(",")[1]) <= 250.0 for pair in corners.split())
