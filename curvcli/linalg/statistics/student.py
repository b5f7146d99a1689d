"""Student's t distribution: quantiles for means of a few samples.

Abramowitz & Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4: a finite sum for whole degrees of
freedom.
"""

import math


def central_probability(t: float, degrees: int) -> float:
    """P(|T| ≤ t) of Student's distribution."""
    if math.isinf(t):
        return 1.0
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total


def quantile(confidence: float, degrees: int) -> float:
    """t with P(|T| ≤ t) = ``confidence``, to 1e-9.

    With one degree of freedom it is Cauchy's distribution, tan(π/2 · confidence):

    >>> quantile(0.5, 1)
    1.00000000
    """
    low, high = 0.0, 1.0
    while central_probability(high, degrees) < confidence:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if central_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return high
