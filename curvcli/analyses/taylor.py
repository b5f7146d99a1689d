"""`curvcli taylor`: how far the second-order model of the loss can be trusted, and where its best step lies."""

import math
from typing import TYPE_CHECKING, Annotated, NamedTuple

from msgspec import Meta, Struct

from curvcli.analyses.analysis import Analysis
from curvcli.analyses.context import Context, Stage, parse_seconds
from curvcli.report.data import (
    Block,
    Chart,
    Column,
    Facts,
    Measured,
    Number,
    Sentence,
    Series,
    Table,
)
from curvcli.report.numbers import number

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.operators.hessian import Hessian
    from curvcli.operators.line import Line

PLAIN = ("gradient", "top", "bottom", "random")
STEPS = ("newton", "newton-npc", "saddle-free", "gauss-newton", "lbfgs")
# Distances looked at, as multiples of √(2L/|κ|), at which a quadratic of curvature κ changes by L.
_DECADES = (-3.0, 1.0)


class Point(Struct, frozen=True):
    """The loss and its model at θ + tΔ."""

    t: float
    radius: Annotated[float, Meta(description="‖tΔ‖")]
    zeroth: Annotated[float, Meta(description="L(θ)")]
    first: Annotated[float, Meta(description="L + t gᵀΔ")]
    second: Annotated[float, Meta(description="L + t gᵀΔ + t²/2 ΔᵀHΔ")]
    true: Annotated[Number, Meta(description="L(θ + tΔ)")]
    error: Annotated[Number, Meta(description="|true − second| / (|t gᵀΔ| + |t²/2 ΔᵀHΔ|)")]


class BestStep(Struct, frozen=True):
    """Where the loss is lowest on the line."""

    t: float
    radius: float
    change: Annotated[float, Meta(description="L(θ + tΔ) − L(θ)")]
    model_t: Annotated[
        Number, Meta(description="where the model is lowest; null where it has no minimum")
    ]


class ThirdOrder(Struct, frozen=True):
    """∂³L/∂t³ at 0, from the misfit of the second-order model."""

    value: float
    standard_error: float


class Direction(Struct, frozen=True):
    """The model along one direction."""

    name: str
    norm: Annotated[
        float, Meta(description="‖Δ‖; 1 but for steps and the way to another checkpoint")
    ]
    slope: Annotated[float, Meta(description="gᵀΔ")]
    curvature: Annotated[float, Meta(description="ΔᵀHΔ")]
    points: list[Point]
    trust_radius: Annotated[
        float, Meta(description="‖tΔ‖ up to which the model is right to --trust")
    ]
    trusted_to_the_end: Annotated[
        bool, Meta(description="trust_radius is the farthest point looked at")
    ]
    curvature_share: Annotated[
        float, Meta(description="share of curvature in the predicted change at the trust radius")
    ]
    best_step: BestStep | None
    third_order: ThirdOrder | None


class TaylorResult(Struct, frozen=True):
    """The second-order Taylor model against the truth."""

    directions: list[Direction]
    critical_learning_rate: Annotated[
        Number,
        Meta(
            description="2/λ_max: gradient descent is unstable above; null without positive curvature"
        ),
    ]
    lambda_max: float
    lambda_max_residual: float
    loss: float
    gradient_norm: float
    trust: float
    parameters: int


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


def taylor(
    context: Context,
    *,
    direction: Annotated[
        list[str],
        f"Along this; repeatable: {', '.join((*PLAIN, *STEPS))}.  [default: {', '.join(PLAIN)}]",
    ] = [],  # noqa: B006
    to: Annotated[str | None, "Also along the line to this other checkpoint of the model."] = None,
    trust: Annotated[
        float, Meta(gt=0, description="Relative error up to which the model is right.")
    ] = 0.1,
    points: Annotated[int, Meta(ge=5, description="Distances looked at on each line.")] = 21,
    tol: Annotated[float, Meta(gt=0, description="Of the extreme eigenvalues, relative.")] = 1e-3,
    max_matvecs: Annotated[int, Meta(ge=2, description="Products to spend on eigenvectors.")] = 200,
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None,
) -> TaylorResult:
    """Predicted against true loss along directions, and the radius of trust.

    Compares L(θ + tΔ) with L + t gᵀΔ + t²/2 ΔᵀHΔ for Δ = −gradient, the top and bottom eigenvectors, a random
    direction, the steps of `curvcli step`, or the way to another checkpoint. Reports how far the model is right,
    the best step on each line, and the largest stable learning rate 2/λ_max.

    Args:
        context: the target.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    import torch

    from curvcli.errors import UsageError, did_you_mean
    from curvcli.linalg.lanczos import ROUNDING, Wanted, lanczos
    from curvcli.linalg.vectors import euclidean_norm
    from curvcli.operators.hessian import Hessian
    from curvcli.operators.line import Line

    for name in direction:
        if name not in PLAIN + STEPS:
            raise UsageError(
                f"there is no direction {name!r}.{did_you_mean(name, PLAIN + STEPS)}",
                f"directions: {', '.join(PLAIN + STEPS)}",
            )
    context.limit_time(parse_seconds(timeout))
    context.progress(Stage("loading", 0, None))
    objective = context.objective
    operator = Hessian(objective, memory=context.spec.memory_bytes, wanted=10)
    context.progress(Stage("eigenvectors", 0, None))
    found = lanczos(
        operator, Wanted(1, 1 if operator.n > 1 else 0), tol=tol, max_matvecs=max_matvecs,
        capacity=operator.plan.capacity, seed=context.spec.seed, recheck=0, stop=context.stop,
    )  # fmt: skip
    if found.status != "converged":
        context.notes.append(
            "the extreme eigenvectors have not converged: top and bottom are approximate"
        )
    eigenvectors = {"top": found.vectors_KN[0], "bottom": found.vectors_KN[-1]}
    names = list(direction) or ([] if to else list(PLAIN))
    results = []
    for name in [*names, *([f"to {to}"] if to else [])]:
        if context.stop() is not None:
            context.incomplete = True
            context.notes.append(f"ended before {name}")
            break
        context.progress(Stage(name, 0, None))
        delta_N = (
            _way_to(context, to) if to and name == f"to {to}"
            else _direction(context, operator, name, eigenvectors, max_matvecs)
        )  # fmt: skip
        if delta_N is None:
            continue
        slope = float(torch.dot(operator.gradient, delta_N))
        curvature = float(torch.dot(delta_N, operator.matvec(delta_N)))
        model = Model(objective.loss, slope, curvature)
        norm = float(euclidean_norm(delta_N))
        whole = name not in PLAIN
        results.append(
            _measure(name, model, Line(objective, delta_N, operator), norm, trust, points, whole)
        )
    top = float(found.values_K[0])
    return TaylorResult(
        directions=results,
        critical_learning_rate=2 / top if top > 0 else None,
        lambda_max=top,
        lambda_max_residual=float(found.bounds_K[0])
        + ROUNDING * torch.finfo(operator.dtype).eps * found.norm,
        loss=objective.loss,
        gradient_norm=float(euclidean_norm(operator.gradient)),
        trust=trust,
        parameters=operator.objective.dimension,
    )


def _direction(
    context: Context,
    operator: "Hessian",
    name: str,
    eigenvectors: "dict[str, Tensor]",
    max_matvecs: int,
) -> "Tensor | None":
    """Δ by name: unit vectors that point downhill, or whole steps."""
    import torch

    from curvcli.errors import LossError
    from curvcli.linalg.operator import random_unit_vector
    from curvcli.linalg.vectors import euclidean_norm
    from curvcli.operators.steps import StepMaker

    gradient_N = operator.gradient
    if name in STEPS:
        maker = StepMaker(
            operator, memory=context.spec.memory_bytes, tol=1e-6, max_matvecs=max_matvecs, damping=1e-3,
            pairs=10, history=8, seed=context.spec.seed, stop=context.stop,
        )  # fmt: skip
        try:
            delta_N = maker.makers[name]().delta_N
        except LossError as error:
            context.notes.append(f"{name} is left out: {error.message}")
            return None
    elif name == "gradient":
        delta_N = -gradient_N / max(
            float(euclidean_norm(gradient_N)), torch.finfo(operator.dtype).tiny
        )
    elif name == "random":
        generator = torch.Generator().manual_seed(context.spec.seed + 1)
        delta_N = random_unit_vector(operator, generator)
    else:
        delta_N = eigenvectors[name]
    if not bool(delta_N.any()):
        context.notes.append(f"{name} is left out: the direction is zero")
        return None
    downhill = name in STEPS or float(torch.dot(gradient_N, delta_N)) <= 0
    return delta_N if downhill else -delta_N


def _way_to(context: Context, path: str | None) -> "Tensor":
    """θ' − θ for the weights θ' in another checkpoint."""
    import copy
    from pathlib import Path

    from curvcli.target.checkpoint import open_checkpoint
    from curvcli.target.model import load_weights

    objective = context.objective
    other = copy.deepcopy(objective.model)
    checkpoint = open_checkpoint(Path(path or ""), context.spec.unsafe_pickle)
    context.notes.extend(load_weights(other, checkpoint, context.spec.allow_partial))
    there = dict(other.named_parameters())
    return objective.flatten([there[name].detach() for name in objective.names]) - objective.flat()


def _measure(
    name: str, model: Model, line: "Line", norm: float, trust: float, points: int, whole: bool
) -> Direction:
    """The model against the truth on a grid, the radius of trust by bisection, the best step."""
    unit = _unit(model)
    low, high = _DECADES
    grid = [unit * 10 ** (low + (high - low) * k / (points - 1)) for k in range(points)]
    if whole:  # a step is looked at up to a little beyond its end
        grid = sorted({*(1.25 * (k + 1) / (points - 1) for k in range(points - 1)), 1e-3, 1e-2})
    truth = {t: line(t) for t in grid}
    resolution = line.resolution()

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
    model: Model, line: "Line", grid: list[float], truth: dict[float, float], norm: float
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
    import numpy as np

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


def view(result: TaylorResult) -> list[Block]:
    """One row for each direction, and a chart of each line."""
    rate = result.critical_learning_rate
    facts = Facts(
        [
            ("loss", result.loss),
            ("gradient norm", result.gradient_norm),
            ("λ max", Measured(result.lambda_max, result.lambda_max_residual)),
            ("critical learning rate 2/λ", rate),
        ]
    )
    table = Table(
        "Second-order Taylor model",
        (
            Column("direction", numeric=False),
            Column("slope"),
            Column("curvature"),
            Column("trusted to"),
            Column("best step"),
            Column("change"),
            Column("third order"),
        ),
        [
            (
                d.name,
                d.slope,
                d.curvature,
                ("≥ " if d.trusted_to_the_end else "") + number(d.trust_radius),
                d.best_step.radius if d.best_step else None,
                d.best_step.change if d.best_step else None,
                Measured(d.third_order.value, d.third_order.standard_error)
                if d.third_order
                else None,
            )
            for d in result.directions
        ],
        f"trusted to: distance up to which the model is right to {result.trust:.0%} of its terms. "
        "best step: distance of the lowest loss on the line.",
    )
    charts: list[Block] = []
    for d in result.directions:
        # Beyond a few radii of trust the model leaves the picture.
        limit = max(3 * d.trust_radius, 1.5 * d.best_step.radius if d.best_step else 0.0)
        shown = [p for p in d.points if p.radius <= limit] or d.points
        radii = [p.radius for p in shown]
        true = Series("true", radii, [math.nan if p.true is None else p.true for p in shown])
        charts.append(
            Chart(
                f"Along {d.name}",
                "distance",
                [true, Series("second order", radii, [p.second for p in shown])],
            )
        )
    sentences: list[Block] = []
    if rate is not None:
        sentences.append(
            Sentence(
                f"Gradient descent is unstable here for learning rates above {number(rate, 3)}."
            )
        )
    return [facts, table, *charts, *sentences]


ANALYSIS = Analysis(taylor, view)
