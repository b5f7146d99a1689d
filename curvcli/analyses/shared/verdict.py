"""What kind of critical point is proven by what was measured.

Ritz values only move inward: θ_min ≥ λ_min, so that one below the noise floor proves negative curvature. A positive
θ_min proves nothing; only the reach ℓ does, with its probability.
"""

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal[
    "not-stationary",
    "strict-saddle",
    "local-minimum",
    "local-maximum",
    "flat-minimum",
    "inconclusive",
]
Gradient = Literal["resolved", "rounding", "unresolved"]
"""resolved: more than rounding; rounding: neither it nor the height of the loss is more; unresolved: only it is not."""
Region = Literal["convex", "concave", "indefinite", "flat", "unknown"]


# A minimum leaves no more than this share of the loss to a Newton step.
PROMISE = 1e-2


@dataclass(frozen=True)
class Evidence:
    """What was measured at θ."""

    stationarity: float
    """ρ = ‖g‖² / (2 ‖H‖ (L - L*)); infinite where H vanishes and g does not."""
    grad_tol: float
    """Stationary: ρ ≤ grad_tol."""
    gradient: Gradient
    """What the gradient is beside its own rounding."""
    theta_min: float
    """Smallest Ritz value."""
    theta_max: float
    """Largest Ritz value."""
    lower: float
    """ℓ: no eigenvalue is smaller, with the probability of the run."""
    upper: float
    """u: no eigenvalue is larger, with the probability of the run."""
    floor: float
    """Curvature below this is rounding of the products."""
    flatness: float
    """Share of ‖H‖ below which negative curvature does not keep a minimum from being called flat."""
    promise: float | None = None
    """½ gᵀ(H₊ + εI)⁻¹g / (L − L*): the share of the loss that a Newton step promises to take away; None: not known."""

    @property
    def norm(self) -> float:
        """‖H‖ as far as seen."""
        return max(abs(self.theta_min), abs(self.theta_max))

    @property
    def stationary(self) -> bool:
        """Whether the gradient vanishes in proportion to curvature and loss."""
        return self.stationarity <= self.grad_tol or self.gradient == "rounding"

    @property
    def vanishes(self) -> bool:
        """Whether the whole Hessian lies within the floor."""
        return self.norm <= self.floor or self.norm == 0.0


def stationarity_of(gradient: float, norm: float, height: float) -> float:
    """ρ = ‖g‖² / (2 ‖H‖ (L − L*)); 0 where the gradient is zero, infinite where only it is not."""
    if gradient == 0.0:
        return 0.0
    below = 2 * norm * height
    return gradient**2 / below if below > 0 else math.inf


def stationarity_interval(
    gradient: float, norms: tuple[float, float], height: float
) -> tuple[float, float] | None:
    """Where ρ lies, for a ‖H‖ between two numbers; None where it may be infinite.

    >>> stationarity_interval(1.0, (1.0, 2.0), 1.0)
    (0.250000, 0.500000)
    """
    low, high = (stationarity_of(gradient, norm, height) for norm in (norms[1], norms[0]))
    return (low, high) if math.isfinite(high) else None


def region(e: Evidence) -> Region:
    """How the surface bends around θ, as far as seen and proven."""
    if e.theta_min < -e.floor and e.theta_max > e.floor:
        return "indefinite"
    if e.vanishes:
        return "flat"
    if e.lower >= -e.flatness * e.norm and e.theta_max > e.floor:
        return "convex"
    if e.upper <= e.flatness * e.norm and e.theta_min < -e.floor:
        return "concave"
    return "unknown"


def classify(e: Evidence) -> Verdict:
    """The verdict that the evidence supports; ``inconclusive`` where it supports none yet."""
    if not e.stationary:
        return "inconclusive" if e.gradient == "unresolved" else "not-stationary"
    if e.vanishes:
        return "inconclusive"  # second order says nothing
    if e.theta_min < -e.floor and e.theta_max > e.floor:
        return "strict-saddle"
    if e.upper <= -e.floor:
        return "local-maximum"
    strict = e.lower >= e.floor and e.lower > 0
    flat = e.theta_min >= -e.floor and e.lower >= -max(e.flatness * e.norm, e.floor)
    if not strict and not flat:
        return "inconclusive"
    if e.promise is not None and e.promise > PROMISE:
        return "not-stationary"
    return "local-minimum" if strict else "flat-minimum"


def products_to_settle(e: Evidence, done: int) -> int | None:
    """A guess of how many more products an inconclusive run needs.

    The bound approaches the smallest Ritz value like 1/m² (Chebyshev polynomials at a spectrum's edge).

    Returns:
        None where more products would not help: the Hessian vanishes, or θ_min itself is in the way.
    """
    goal = -max(e.flatness * e.norm, e.floor)
    if e.vanishes or e.theta_min <= goal or e.lower >= goal or done == 0:
        return None
    ratio = (e.theta_min - e.lower) / (e.theta_min - goal)
    return max(1, int(done * (ratio**0.5 - 1)) + 1)
