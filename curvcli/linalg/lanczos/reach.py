"""How far a spectrum can reach beyond the Ritz values that were seen."""

import math
import sys
from collections.abc import Sequence

import numpy as np

from curvcli.linalg.operator import Float64Array, eigh


def smallest_component(n: int, probability: float) -> float:
    """δ such that a fixed unit vector has |⟨x, q⟩| < δ with at most ``probability``.

    ``q`` is uniform on the unit sphere of ℝⁿ. The component has the density
    f(c) = Γ(n/2) / (√π Γ((n-1)/2)) · (1 - c²)^((n-3)/2), largest at 0 for n ≥ 3, so that
    P(|c| < δ) ≤ 2 δ f(0).
    """
    if n == 1:
        return 1.0
    if n == 2:
        return math.sin(math.pi * probability / 2)
    log_peak = math.lgamma(n / 2) - math.lgamma((n - 1) / 2) - 0.5 * math.log(math.pi)
    return probability / (2 * math.exp(log_peak))


def reach(
    alphas: Sequence[float],
    betas: Sequence[float],
    n: int,
    probability: float,
    share: float = 1.0,
) -> tuple[float, float]:
    """Bounds (lower, upper) on the whole spectrum that hold with probability ``1 - probability``.

    The Lanczos vector q_{m+1} = p_m(A) q_1 has unit length, hence |p_m(λ)| |⟨x, q_1⟩| ≤ 1 for every
    eigenpair (λ, x), and p_m grows fast outside the Ritz values:
    log|p_m(λ)| = Σ log|λ - θ_i| - Σ log β_j. Each end is given half of the probability.

    Args:
        alphas: diagonal of the tridiagonal matrix of one unrestarted run, m numbers.
        betas: its off-diagonal *with* the norm of the last residual vector, m numbers.
        n: dimension of the space the start vector was drawn from.
        probability: with which the bounds may fail, in (0, 1).
        share: of the start vector that is random, see `linalg.warm.mixed`.

    Source: van Dorsselaer, Hochstenbach & van der Vorst, SIAM J. Matrix Anal. Appl. 22 (2000).

    A run that exhausted the space has seen the whole spectrum. After one step in the plane no more than δ = sin(π/6) of
    the start vector is sure to lie along an eigenvector, and the reach is the Ritz value ± β / δ:

    >>> reach([2.0, 2.0], [1.0, 0.0], n=2, probability=1e-3)
    (1.000000, 3.000000)
    >>> reach([2.0], [1.0], n=2, probability=2 / 3)
    (0.000000, 4.000000)
    """
    m = len(alphas)
    off = np.asarray(betas[: m - 1])
    theta_M, _ = eigh(np.diag(np.asarray(alphas)) + np.diag(off, 1) + np.diag(off, -1))
    if betas[-1] == 0.0:
        return float(theta_M[0]), float(theta_M[-1])
    # log|p_m| must reach log(1/δ) at the bound.
    component = share * smallest_component(n, probability / 2)
    level = -math.log(component) + sum(math.log(b) for b in betas)
    upper = float(theta_M[-1]) + _excess(theta_M[-1] - theta_M, level)
    lower = float(theta_M[0]) - _excess(theta_M - theta_M[0], level)
    return lower, upper


def _excess(gaps_M: Float64Array, level: float) -> float:
    """The t ≥ 0 with Σ log(t + gap_i) = level, or a little more.

    The sum is convex and grows in u = log t, so that Newton's method comes down to the root from above.
    """
    # No gap is negative, so that the root of m log t = level is not smaller.
    t = math.exp(min(max(level / len(gaps_M), -690.0), 700.0))
    for _ in range(100):
        shifted_M = t + gaps_M
        above = float(np.log(shifted_M).sum()) - level
        slope = t * float((1.0 / shifted_M).sum())
        # The step overshoots to below the root only by rounding: 1e-12 of the sum is more than that.
        if above <= 1e-12 * max(1.0, abs(level)):
            break
        t = max(t * math.exp(-above / slope), sys.float_info.min)
    return t
