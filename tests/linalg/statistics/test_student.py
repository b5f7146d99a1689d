"""Quantiles of Student's t are those of the tables."""

import math

import pytest

from curvcli.linalg.statistics.student import central_probability, quantile


def test_quantiles_of_student_from_tables() -> None:
    """Abramowitz & Stegun, table 26.10."""
    for degrees, confidence, expected in (
        (1, 0.95, 12.706), (2, 0.99, 9.925), (5, 0.95, 2.571), (9, 0.95, 2.262), (30, 0.999, 3.646),
    ):  # fmt: skip
        assert quantile(confidence, degrees) == pytest.approx(expected, abs=5e-4)
    assert quantile(0.95, 10**5) == pytest.approx(1.95997, abs=1e-4)
    assert central_probability(math.inf, 3) == 1
