"""`curvcli track`: curvature over training, each checkpoint started from the one before."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, Stage, parse_seconds
from curvcli.analyses.shared.eigenpairs import Reach
from curvcli.analyses.shared.targets import step_of
from curvcli.analyses.shared.verdict import stationarity_of
from curvcli.analyses.track.result import (
    Edge,
    TrackedTrace,
    TrackedValue,
    TrackPoint,
    TrackResult,
)
from curvcli.analyses.track.view import view
from curvcli.errors import CurvError
from curvcli.report.data import ErrorInfo

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.operators.curvature.hessian import Hessian

# "At" the edge of stability: λ_max within this of 2/lr (the range that training monitors use).
_EDGE = 0.3


@dataclass(frozen=True)
class _Options:
    tol: float
    max_matvecs: int
    probability: float
    probes: int
    loss_floor: float
    rate: float | None


def track(
    context: Context,
    *,
    lr: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Learning rate: λ_max is held against 2/lr, the edge of stability."),
    ] = None,
    tol: Annotated[float, Meta(gt=0, description="Of the extreme eigenvalues, relative.")] = 1e-2,
    max_matvecs: Annotated[
        int, Meta(ge=2, description="Products for the eigenvalues of one checkpoint at most.")
    ] = 200,
    probes: Annotated[
        int, Meta(ge=0, description="Products for the trace of each checkpoint; 0: no trace.")
    ] = 8,
    probability: Annotated[
        float, Meta(gt=0, lt=1, description="With which the reach at both ends holds.")
    ] = 0.999,
    loss_floor: Annotated[float, "L*, the lowest value the loss can take."] = 0.0,
    warm: Annotated[
        bool, "Start from the eigenvectors of the checkpoint before; --no-warm: from scratch."
    ] = True,
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None,
) -> TrackResult:
    """Curvature over training: λ_max, λ_min, trace, stationarity and loss by checkpoint.

    Takes checkpoints in the order of training, or a directory with step numbers in the names; a target file before
    them gives model, data and loss. Each checkpoint starts from the eigenvectors of the one before and a random
    part, which keeps the reach valid. A checkpoint that cannot be read is a finding; the rest are reported.

    Args:
        context: its members are the checkpoints.

    Raises:
        CurvError: no checkpoint gives any figure.
    """
    context.limit_time(parse_seconds(timeout))
    options = _Options(tol, max_matvecs, 1 - probability, probes, loss_floor, lr)
    points: list[TrackPoint] = []
    problems: list[CurvError] = []
    guess_N: Tensor | None = None
    first: Context | None = None
    members = list(context.members)
    for index, member in enumerate(members):
        if context.stop() is not None:
            context.incomplete = True
            context.notes.append(f"ended before {member.name}: {len(members) - index} are left out")
            break
        context.progress(Stage("checkpoints", index, len(members), member.name))
        try:
            if first is not None:
                member.target.share_data(first.target)
            point, guess_N = _point(context, member, options, guess_N if warm else None, index)
            first = first or member
        except CurvError as problem:
            problems.append(problem)
            info = ErrorInfo(problem.code, problem.message, problem.hint, problem.exit_code)
            point = TrackPoint(step=step_of(member.name), checkpoint=member.name, error=info)
            context.find(
                "track.bad-checkpoint", "warning", member.name, f"{member.name}: {problem.message}"
            )
        points.append(point)
        context.item(point)
        for note in member.notes:
            if note not in context.notes:
                context.notes.append(note)
        if member is not first:
            member.release()
    if problems and len(problems) == len(points):
        raise problems[0]
    result = TrackResult(
        points=points,
        learning_rate=lr,
        edge=2 / lr if lr else None,
        failed=len(problems),
    )
    _findings(context, result)
    return result


def _point(
    context: Context, member: Context, options: _Options, guess_N: "Tensor | None", index: int
) -> tuple[TrackPoint, "Tensor"]:
    """The figures of one checkpoint, and what the next one starts from."""
    import torch

    from curvcli.linalg.lanczos.factorization import start
    from curvcli.linalg.lanczos.lanczos import lanczos
    from curvcli.linalg.lanczos.ritz import Wanted
    from curvcli.linalg.stochastic.probes import deflated_trace
    from curvcli.operators.curvature.hessian import Hessian

    objective = member.objective
    operator = Hessian(objective, memory=member.spec.memory_bytes, wanted=4)
    wanted = Wanted(1, 1) if operator.n > 1 else Wanted(1, 0)
    if guess_N is not None and len(guess_N) != operator.n:
        guess_N = None
    # Another random part for each checkpoint: the guess depends on those before.
    seed = member.spec.seed + 7919 * index
    state = start(operator, operator.plan.capacity, seed, guess_N)
    found = lanczos(
        operator, wanted, tol=options.tol, max_matvecs=options.max_matvecs,
        probability=options.probability, recheck=0, state=state, stop=context.stop,
    )  # fmt: skip
    rounding = _rounding(operator, found.norm)
    values = [
        TrackedValue(float(v), float(b) + rounding, c)
        for v, b, c in zip(found.values_K, found.bounds_K, found.converged_K, strict=True)
    ]
    zero = TrackedValue(0.0, 0.0, True)
    if (
        objective.untouched
    ):  # entries of embeddings that no sample touches have exactly zero curvature
        values = [
            max(values[0], zero, key=lambda v: v.value),
            min(values[-1], zero, key=lambda v: v.value),
        ]
    if found.status != "converged":
        context.find(
            "track.not-converged", "warning", member.name,
            f"{member.name}: the eigenvalues have not converged within {found.matvecs} products "
            "(raise --max-matvecs or --tol)",
            value=float(found.matvecs), threshold=float(options.max_matvecs),
        )  # fmt: skip
    trace, before = None, objective.cost.matvecs
    estimate = deflated_trace(
        operator, found.vectors_KN, [float(v) for v in found.values_K], options.probes,
        torch.Generator().manual_seed(seed + 1), context.stop,
    )  # fmt: skip
    if estimate is not None:
        trace = TrackedTrace(estimate.value, estimate.standard_error)
    norm = float(torch.linalg.vector_norm(operator.gradient))
    lower, upper = found.lower - rounding, found.upper + rounding
    if objective.untouched:
        lower, upper = min(lower, 0.0), max(upper, 0.0)
    height = objective.loss - options.loss_floor
    stationarity = stationarity_of(norm, found.norm, height)
    point = TrackPoint(
        step=step_of(member.name),
        checkpoint=member.name,
        loss=objective.loss,
        gradient_norm=norm,
        stationarity=stationarity if stationarity < float("inf") else None,
        lambda_max=values[0],
        lambda_min=values[-1],
        reach=Reach(lower, upper, 1 - options.probability),
        trace=trace,
        edge=_edge(values[0], options.rate),
        sharpness_ratio=values[0].value * options.rate / 2 if options.rate else None,
        warm=state.share < 1.0,
        matvecs=found.matvecs,
        trace_matvecs=objective.cost.matvecs - before,
    )
    return point, _guess(found.vectors_KN)


def _guess(vectors_KN: "Tensor") -> "Tensor":
    """What the next checkpoint starts from: both extreme eigenvectors."""
    guess_N: Tensor = vectors_KN.sum(0)
    return guess_N


def _rounding(operator: "Hessian", norm: float) -> float:
    import torch

    from curvcli.linalg.operator import ROUNDING

    return float(ROUNDING * torch.finfo(operator.dtype).eps * norm)


def _edge(sharpness: TrackedValue, rate: float | None) -> Edge | None:
    if rate is None:
        return None
    limit = 2 / rate
    if sharpness.value - sharpness.residual > (1 + _EDGE) * limit:
        return "above"
    return "below" if sharpness.value + sharpness.residual < (1 - _EDGE) * limit else "at"


def _findings(context: Context, result: TrackResult) -> None:
    for edge, severity, told in (
        ("above", "warning", "above the edge of stability 2/lr: gradient descent diverges there"),
        ("at", "note", "at the edge of stability 2/lr"),
    ):
        points = [p for p in result.points if p.edge == edge and p.lambda_max is not None]
        if points:
            last = points[-1]
            context.find(
                f"track.edge-{edge}", severity, last.checkpoint,  # type: ignore[arg-type]
                f"{len(points)} of {len(result.points)} checkpoints are {told}",
                value=last.lambda_max.value if last.lambda_max else None, threshold=result.edge,
            )  # fmt: skip


ANALYSIS = Analysis(track, view, targets="series")
