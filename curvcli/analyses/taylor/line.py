"""The second-order model on one line through θ against the loss itself: radius of trust, best step, third order."""

import math
from typing import NamedTuple

import numpy as np

from curvcli.analyses.taylor.result import BestStep, Direction, Point, ThirdOrder
from curvcli.operators.surface.line import Line

# Distances looked at, as multiples of √(2L/|κ|), at which a quadratic of curvature κ changes by L.
_DECADES = (-3.0, 1.0)


class Model(NamedTuple):
    """L + slope t + curvature t²/2."""

    loss: float
    slope: float
    curvature: float

    def at(self, t: float) -> float:
        """Its value."""
        return self.loss + self.slope * t + 0.5 * self.curvature * t**2

    def terms(self, t: float) -> float:
        """The size of its terms, against which errors are measured."""
        return abs(self.slope * t) + abs(0.5 * self.curvature * t**2)


def measure(
    name: str, model: Model, line: Line, norm: float, trust: float, points: int, whole: bool
) -> Direction:
    """The model against the truth on a grid, the radius of trust by bisection, the best step.

    Args:
        name: of the direction Δ.
        model: L + t gᵀΔ + t²/2 ΔᵀHΔ.
        line: t -> L(θ + tΔ).
        norm: ‖Δ‖.
        trust: relative error up to which the model is right.
        points: distances looked at.
        whole: Δ is a whole step or way, looked at up to a little beyond its end.
    """
    unit = _unit(model)
    low, high = _DECADES
    grid = [unit * 10 ** (low + (high - low) * k / (points - 1)) for k in range(points)]
    if whole:  # a step is looked at up to a little beyond its end
        grid = sorted({*(1.25 * (k + 1) / (points - 1) for k in range(points - 1)), 1e-3, 1e-2})
    truth = {t: line(t) for t in grid}
    resolution = line.resolution

    def error(t: float) -> float:
        if t not in truth:
            truth[t] = line(t)
        misfit = abs(truth[t] - model.at(t))
        terms = model.terms(t)
        if misfit <= resolution:
            return 0.0
        return misfit / terms if terms > 0 and math.isfinite(misfit) else math.inf

    first_bad = next((t for t in grid if error(t) > trust), None)
    if first_bad is None:
        radius_t = grid[-1]
    else:
        good, bad = max((t for t in grid if t < first_bad), default=0.0), first_bad
        for _ in range(10):
            middle = 0.5 * (good + bad)
            good, bad = (middle, bad) if error(middle) <= trust else (good, middle)
        radius_t = good
    best = _best(model, line, grid, truth, norm)
    shown = [
        Point(
            t, t * norm, model.loss, model.loss + model.slope * t, model.at(t),
            truth[t] if math.isfinite(truth[t]) else None, error(t) if math.isfinite(error(t)) else None,
        )
        for t in grid
    ]  # fmt: skip
    terms = model.terms(radius_t)
    return Direction(
        name=name,
        norm=norm,
        slope=model.slope,
        curvature=model.curvature,
        points=shown,
        trust_radius=radius_t * norm,
        trusted_to_the_end=first_bad is None,
        curvature_share=abs(0.5 * model.curvature * radius_t**2) / terms if terms else 0.0,
        best_step=best,
        third_order=_third_order(model, truth, radius_t, resolution),
    )


def _unit(model: Model) -> float:
    """The t at which the model changes by about L."""
    height = abs(model.loss) or 1.0
    candidates = []
    if model.curvature:
        candidates.append(math.sqrt(2 * height / abs(model.curvature)))
    if model.slope:
        candidates.append(height / abs(model.slope))
    return min(candidates, default=1.0)


def _best(
    model: Model, line: Line, grid: list[float], truth: dict[float, float], norm: float
) -> BestStep | None:
    """The lowest loss on the line, refined by golden sections between its neighbours on the grid."""
    finite = [t for t in grid if math.isfinite(truth[t])]
    if not finite:
        return None
    lowest = min(finite, key=lambda t: truth[t])
    below = max((t for t in finite if t < lowest), default=0.0)
    above = min((t for t in finite if t > lowest), default=lowest)
    golden = (math.sqrt(5) - 1) / 2
    a, b = below, above
    best_t, best = lowest, truth[lowest]
    for _ in range(12):
        for t in (b - golden * (b - a), a + golden * (b - a)):
            value = truth.setdefault(t, line(t)) if t not in truth else truth[t]
            if value < best:
                best_t, best = t, value
        left, right = b - golden * (b - a), a + golden * (b - a)
        a, b = (a, right) if truth[left] < truth[right] else (left, b)
    if best >= model.loss:
        return None
    model_t = -model.slope / model.curvature if model.curvature > 0 and model.slope < 0 else None
    return BestStep(best_t, best_t * norm, best - model.loss, model_t)


def _third_order(
    model: Model, truth: dict[float, float], radius_t: float, resolution: float
) -> ThirdOrder | None:
    """Least squares of misfit / t³ = c₃/6 + c₄ t/24 over the points within the radius of trust."""
    used = [t for t in truth if 0 < t <= radius_t and abs(truth[t] - model.at(t)) > 3 * resolution]
    if len(used) < 4:
        return None
    ts = np.array(used)
    y = np.array([truth[t] - model.at(t) for t in used])
    # Each loss has the same rounding, so misfits are weighted alike: fit y = c₃ t³/6 + c₄ t⁴/24.
    design = np.stack([ts**3 / 6, ts**4 / 24], 1)
    scale = np.linalg.norm(design, axis=0)
    solution, *_ = np.linalg.lstsq(design / scale, y, rcond=None)
    rest = y - (design / scale) @ solution
    variance = max(float(rest @ rest) / max(1, len(used) - 2), resolution**2)
    covariance = variance * np.linalg.pinv((design / scale).T @ (design / scale))
    return ThirdOrder(float(solution[0] / scale[0]), float(math.sqrt(covariance[0, 0]) / scale[0]))
