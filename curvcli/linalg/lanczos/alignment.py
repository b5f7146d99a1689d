"""How far computed eigenvectors may be from true ones, and what that means for what is read off them.

An eigenvector of a pair (θ, v) with residual ρ whose eigenvalue is at least δ away from the others makes an angle of at
most asin(ρ/δ) with v (Davis & Kahan, SIAM J. Numer. Anal. 7, 1970), and so does a space for the residuals of all its
vectors together. A squared projection ‖P v‖² is then off by no more than the sine.

Shapes: ``K`` pairs, ``M`` Ritz values.
"""

import math
from collections.abc import Sequence

from curvcli.linalg.operator import Float64Array

# Of the distance to a Ritz value that has no bound on its error, so much is counted on.
_UNCERTAIN = 0.5


def vector_errors(
    values: Sequence[float], residuals: Sequence[float], ritz_values_M: Float64Array
) -> list[float | None]:
    """Bound on the sine of the angle of each vector to a true eigenvector; None where it is not separated.

    The gap is as far as seen: to the other pairs less their residuals, and half of that to any other Ritz value.

    Args:
        values: θ of the pairs.
        residuals: ρ of the pairs.
        ritz_values_M: all Ritz values of the run, those of the pairs among them.
    """
    others = _others(values, ritz_values_M)
    errors = []
    for i, (value, residual) in enumerate(zip(values, residuals, strict=True)):
        gaps = [abs(value - v) - r for v, r in _except(i, values, residuals)]
        gaps += [_UNCERTAIN * abs(value - v) for v in others]
        errors.append(_sine(residual, min(gaps, default=math.inf)))
    return errors


def space_error(
    values: Sequence[float],
    residuals: Sequence[float],
    rest: Sequence[tuple[float, float]],
    ritz_values_M: Float64Array,
) -> float | None:
    """Bound on the sine of the largest angle between the span of some vectors and an invariant space.

    Args:
        values: θ of the vectors.
        residuals: ρ of the vectors.
        rest: (θ, ρ) of pairs that are known and do not belong to them.
        ritz_values_M: all Ritz values of the run.
    """
    others = _others([*values, *(v for v, _ in rest)], ritz_values_M)
    gaps = [abs(value - v) - r for value in values for v, r in rest]
    gaps += [_UNCERTAIN * abs(value - v) for value in values for v in others]
    return _sine(math.hypot(*residuals), min(gaps, default=math.inf))


def _except(
    index: int, values: Sequence[float], residuals: Sequence[float]
) -> list[tuple[float, float]]:
    return [pair for j, pair in enumerate(zip(values, residuals, strict=True)) if j != index]


def _others(values: Sequence[float], ritz_values_M: Float64Array) -> list[float]:
    """The Ritz values that are none of ``values``; each stands for its nearest one."""
    left = [float(v) for v in ritz_values_M]
    for value in values:
        if left:
            left.remove(min(left, key=lambda v: abs(v - value)))
    return left


def _sine(residual: float, gap: float) -> float | None:
    return residual / gap if gap > residual else None
