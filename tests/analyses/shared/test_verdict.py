"""A verdict follows from stationarity and the ends of the spectrum as its table says."""

from curvcli.analyses.shared.verdict import Evidence, classify


def test_classify_holds_the_table() -> None:
    def evidence(stationarity: float, ends: tuple[float, float, float, float]) -> Evidence:
        low, high, lower, upper = ends
        return Evidence(stationarity, 1e-3, "resolved", low, high, lower, upper, 1e-6, 1e-3)

    cases = [
        ((-1.0, 2.0, -1.1, 2.1), "strict-saddle"),
        ((0.5, 2.0, 0.4, 2.1), "local-minimum"),
        ((-2.0, -0.5, -2.1, -0.4), "local-maximum"),
        ((1e-9, 2.0, -1e-5, 2.1), "flat-minimum"),
        ((1e-9, 2.0, -0.1, 2.1), "inconclusive"),
        ((0.0, 0.0, 0.0, 0.0), "inconclusive"),
        ((-1e-7, 2.0, -1e-7, 2.1), "flat-minimum"),
    ]
    for ends, expected in cases:
        assert classify(evidence(0.0, ends)) == expected
        assert classify(evidence(0.1, ends)) == "not-stationary"
