"""Signal and noise of a gradient from its parts: McCandlish et al., arXiv 1812.06162 (2018), appendix A.

Part i, of b_i samples, has the mean gradient g_i = G + noise of covariance Σ/b_i. Only the inner products
⟨g_i, g_j⟩ are needed. Standard errors by the jackknife over the parts.

Shapes: ``P`` parts.
"""

from typing import NamedTuple

import numpy as np

from curvcli.linalg.operator import Float64Array


class Estimate(NamedTuple):
    """A number and its standard error; None where there are too few parts for one."""

    value: float
    standard_error: float | None


class NoiseEstimate(NamedTuple):
    """Of one tensor's gradient, or of all together."""

    gradient_square: Estimate
    """|G|², unbiased: it can be negative where noise prevails."""
    trace: Estimate
    """tr Σ, the variance of one sample's gradient, summed over its entries."""
    critical_batch: Estimate | None
    """B = tr Σ / |G|²: None where |G|² is not positive."""
    signal_to_noise: Estimate
    """|G| / √(tr Σ / N) for all N samples; 0 where |G|² is not positive."""


def noise_estimate(gram_PP: Float64Array, samples_P: Float64Array) -> NoiseEstimate | None:
    """|G|² from pairs of parts, tr Σ from the spread of the parts around their mean.

    Returns:
        None with fewer than two parts, or inner products that are not finite.
    """
    p = len(samples_P)
    if p < 2 or not np.isfinite(gram_PP).all():
        return None
    whole = _estimates(gram_PP, samples_P, samples_P.sum())
    if p < 3:
        return _named(whole, np.full(4, np.nan))
    # The data size stays N when a part is left out: it scales the noise, it is no estimate.
    left = np.array(
        [
            _estimates(gram_PP[np.ix_(k, k)], samples_P[k], samples_P.sum())
            for k in (np.delete(np.arange(p), i) for i in range(p))
        ]
    )
    finite = np.isfinite(left).all(0)
    spread = np.where(finite, left - np.where(finite, left, 0.0).mean(0), np.nan)
    return _named(whole, np.sqrt((p - 1) / p * (spread**2).sum(0)))


def _estimates(gram_PP: Float64Array, b_P: Float64Array, total: float) -> Float64Array:
    """(|G|², tr Σ, tr Σ/|G|² or NaN, |G|/√(tr Σ/N))."""
    weights = np.outer(b_P, b_P)
    off = weights.sum() - (b_P**2).sum()
    diagonal = np.diag(gram_PP)
    square = ((weights * gram_PP).sum() - (b_P**2 * diagonal).sum()) / off
    around_mean = (b_P * diagonal).sum() - (weights * gram_PP).sum() / b_P.sum()
    trace = max(0.0, float(around_mean)) / (len(b_P) - 1)
    critical = trace / square if square > 0 else np.nan
    ratio = np.sqrt(max(square, 0.0) * total / trace) if trace > 0 else np.nan
    return np.array([square, trace, critical, ratio])


def _named(whole: Float64Array, errors: Float64Array) -> NoiseEstimate:
    each = [
        Estimate(float(v), float(e) if np.isfinite(e) else None)
        for v, e in zip(whole, errors, strict=True)
    ]
    return NoiseEstimate(each[0], each[1], each[2] if np.isfinite(each[2].value) else None, each[3])
