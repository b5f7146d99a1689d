"""Charts draw their bands: as dots along both edges in text, as an area in SVG."""

import re

import pytest

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


def test_the_axis_holds_the_whole_band_unless_it_is_wider_than_the_curve_is_high() -> None:
    def lowest(half: float) -> tuple[float, float]:
        """Of the curve, and of its band, in shares of the height above the frame's lower edge."""
        drawn = svg(chart(half))
        found = []
        for shape in ("polyline", "polygon"):
            (corners,) = re.findall(rf'<{shape} points="([^"]+)"', drawn)
            found.append(max(float(pair.split(",")[1]) for pair in corners.split()))
        curve, band = ((250.0 - y) / 230.0 for y in found)
        return curve, band

    # The curve goes from 0 to 10, its band from −2 to 12: the curve begins at 2 of 14.
    assert lowest(2.0) == pytest.approx((2 / 14, 0.0), abs=1e-3)  # drawn to a tenth of a pixel
    # A band of ± 100 is cut at one height of the curve beyond it.
    assert lowest(100.0) == pytest.approx((1 / 3, 0.0), abs=1e-3)
