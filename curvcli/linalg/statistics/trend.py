"""A straight line through data with outliers: the Theil-Sen slope and its distribution-free interval.

Theil (1950); Sen, J. Am. Stat. Assoc. 63 (1968).
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from curvcli.linalg.operator import Float64Array

# Beyond so many points they are first replaced by the medians of so many groups of neighbours:
# the number of pairs would grow with the square.
MAX_POINTS = 400
# Up to so many points Kendall's distribution is computed exactly, beyond it is normal to four digits.
_EXACT = 40


class Trend(NamedTuple):
    """y ≈ intercept + slope · x."""

    slope: float
    intercept: float
    lower: float | None
    """End of the confidence interval of the slope; None where there are too few points for one."""
    upper: float | None
    points: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, if there are any."""
        return None if self.lower is None or self.upper is None else (self.lower, self.upper)


def theil_sen(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> Trend | None:
    """The median of the slopes of all pairs of points, and the interval from Kendall's τ.

    The interval holds with at least ``confidence`` when the deviations from the line are exchangeable; it needs five
    points for 95 %. Points that are not finite are left out.

    Returns:
        None with fewer than two different x.

    >>> trend = theil_sen([0, 1, 2, 3, 4], [1, 3, 5, 7, 100])
    >>> trend.slope, trend.intercept
    (2.000000, 1.000000)
    """
    x_N, y_N = np.asarray(x, np.float64), np.asarray(y, np.float64)
    finite = np.isfinite(x_N) & np.isfinite(y_N)
    x_N, y_N = x_N[finite], y_N[finite]
    points = len(x_N)
    if points > MAX_POINTS:
        order = np.argsort(x_N, kind="stable")
        groups = np.array_split(order, MAX_POINTS)
        x_N = np.array([np.median(x_N[g]) for g in groups])
        y_N = np.array([np.median(y_N[g]) for g in groups])
    i, j = np.triu_indices(len(x_N), 1)
    different = x_N[i] != x_N[j]
    if not different.any():
        return None
    i, j = i[different], j[different]
    slopes = np.sort((y_N[j] - y_N[i]) / (x_N[j] - x_N[i]))
    slope = float(np.median(slopes))
    intercept = float(np.median(y_N - slope * x_N))
    rank = _rank(len(x_N), confidence)
    # Pairs at the same x tell nothing: they shorten the list by as many at each end.
    rank = None if rank is None else rank - (~different).sum() // 2
    if rank is None or rank < 0:
        return Trend(slope, intercept, None, None, points)
    return Trend(slope, intercept, float(slopes[rank]), float(slopes[-1 - rank]), points)


def _rank(n: int, confidence: float) -> int | None:
    """Largest r with P(at most r of the pairs' slopes lie below the true one) ≤ (1 − confidence)/2."""
    tail = (1 - confidence) / 2
    if n <= _EXACT:
        below = int(np.searchsorted(np.cumsum(_inversions(n)), tail, side="right"))
        return below - 1 if below else None
    pairs = n * (n - 1) / 2
    spread = (n * (n - 1) * (2 * n + 5) / 72) ** 0.5
    return max(0, int(pairs / 2 - NormalDist().inv_cdf(1 - tail) * spread - 0.5))


def _inversions(n: int) -> Float64Array:
    """Probability of each number of inversions, 0 … n(n−1)/2, of a random permutation of n."""
    probability = np.ones(1)
    for k in range(2, n + 1):
        probability = np.convolve(probability, np.full(k, 1 / k))
    return probability
