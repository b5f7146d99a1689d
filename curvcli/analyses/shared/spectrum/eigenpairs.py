"""Eigenvalues as they are shown, and what is certain of learning rates by a largest one."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.report.data import Number
from curvcli.report.numbers import agreed, at_least, at_most


class Eigenpair(Struct, frozen=True):
    """An eigenvalue of the Hessian with its errors."""

    value: Annotated[float, Meta(description="Rayleigh quotient vᵀHv")]
    residual: Annotated[
        float, Meta(description="ρ: some eigenvalue lies within value ± ρ; ‖Hv − θv‖ and rounding")
    ]
    converged: Annotated[bool, Meta(description="ρ ≤ tol · max(|value|, 0.01 ‖H‖)")]
    batch_standard_error: Annotated[
        Number, Meta(description="of vᵀHv over the batches (a single batch is split)")
    ]


class Reach(Struct, frozen=True):
    """How far the spectrum can extend beyond what was seen."""

    lower: Annotated[float, Meta(description="no eigenvalue is smaller")]
    upper: Annotated[float, Meta(description="no eigenvalue is larger")]
    probability: Annotated[float, Meta(description="with which both hold")]


def critical_rates(low: float, high: float) -> tuple[float, float] | None:
    """(stable below, unstable above) of gradient descent, for a λ_max between two numbers; None where it may be ≤ 0.

    On a quadratic, gradient descent oscillates and grows along a direction of curvature λ for rates above 2/λ
    (Goodfellow, Bengio & Courville, Deep Learning, section 8.2.3).

    >>> critical_rates(4.0, 5.0)
    (0.400000, 0.500000)
    """
    return (2 / high, 2 / low) if low > 0 else None


def rate_sentence(low: float, high: float, probability: float) -> str | None:
    """What is certain of the learning rates of gradient descent, for a λ_max between two numbers."""
    rates = critical_rates(low, high)
    if rates is None:
        if high <= 0:
            return None
        rate = at_least(2 / high, 3)
        return f"Gradient descent on this data is stable for learning rates below {rate} (probability {probability:g})."
    stable, unstable = rates
    both = agreed(low, high)
    if both is not None:
        return (
            f"Sharpest curvature λ = {both}: gradient descent on this data is stable for learning rates below "
            f"{at_least(stable, 3)} (probability {probability:g})."
        )
    return (
        f"Sharpest curvature λ between {at_least(low, 3)} and {at_most(high, 3)}: gradient descent on this data is "
        f"unstable for learning rates above {at_most(unstable, 3)}, and stable below {at_least(stable, 3)} "
        f"(probability {probability:g})."
    )
