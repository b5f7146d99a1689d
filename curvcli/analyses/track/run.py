"""`curvcli track`: curvature over training, each checkpoint started from the one before."""

from typing import NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor

from curvcli.analyses.shared.again import again
from curvcli.analyses.shared.answer import Answer, error_info
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum import saved
from curvcli.analyses.shared.spectrum.certified import by_recurrence
from curvcli.analyses.shared.spectrum.checked import Checked, check_products
from curvcli.analyses.shared.spectrum.eigenpairs import Eigenpair, Reach
from curvcli.analyses.shared.spectrum.matrices import untouched_zeros
from curvcli.analyses.shared.spectrum.saved import packed, run_log, unpacked
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.shared.verdict import stationarity_interval, stationarity_of
from curvcli.analyses.track.asked import Asked, asked_for, figures_at
from curvcli.analyses.track.command import TrackOptions
from curvcli.analyses.track.development import development
from curvcli.analyses.track.findings import (
    BAD_CHECKPOINT,
    EDGE_ABOVE,
    EDGE_AT,
    NOT_CONVERGED,
    RUN_DIED,
    SUSPICIOUS,
)
from curvcli.analyses.track.health import health_of
from curvcli.analyses.track.limits import Known, Whole, edge_of, held, limit_of, momentum_of
from curvcli.analyses.track.order import ordered
from curvcli.analyses.track.result import (
    Edge,
    TrackedTrace,
    TrackedValue,
    TrackPoint,
    TrackResult,
)
from curvcli.errors import CurvError
from curvcli.linalg.lanczos.certify import recurred
from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import LanczosResult, lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.run_log import Kept, Logged, RunLog
from curvcli.linalg.stochastic.probes import deflated_trace
from curvcli.objective.movement import held_weights, moved
from curvcli.operators.curvature.hessian import Hessian

_GRAVITY = {"error": 0, "warning": 1, "note": 2}


def run(subject: Subject, options: TrackOptions, journal: Journal) -> Answer[TrackResult]:
    """Answer `curvcli track`; see `TrackOptions`.

    Raises:
        CurvError: no checkpoint gives any figure.
    """
    asked = asked_for(options.figure)
    with run_log(options.state, "track", journal) as log:
        return _tracked(subject, options, asked, journal, log)


def _tracked(
    subject: Subject, options: TrackOptions, asked: list[Asked], journal: Journal, log: RunLog
) -> Answer[TrackResult]:
    """The figures of all checkpoints."""
    points: list[TrackPoint] = []
    problems: list[CurvError] = []
    guess_N: Tensor | None = None
    first: Subject | None = None
    members = ordered(list(subject.members), journal)
    previous: tuple[str | None, dict[str, Tensor]] = (None, {})
    for index, (member, place, step, training) in enumerate(members):
        if journal.stop() is not None:
            journal.cut_short(f"ended before {member.name}: {len(members) - index} are left out")
            break
        journal.progress(Stage("checkpoints", index, len(members), member.name))
        try:
            if first is not None:
                member.target.share_data(first.target)
            if place != previous[0]:
                guess_N, previous = None, (place, {})
            optimizer = training.optimizer if training else None
            if optimizer is not None and member.divided:
                optimizer = None
                journal.note(
                    "the states of optimizers are not looked at: --shard divides tensors that they have whole"
                )
            known = Known(step, place, optimizer)
            point, guess_N = _kept_point(
                journal, member, options, guess_N if options.warm else None, index, known, log
            )
            weights, ranks = held_weights(member.objective), member.objective.ranks
            health = health_of(member)._asdict()
            also = figures_at(member, asked, index, journal, log)
            point = replace(point, moved=moved(previous[1], weights, ranks), figures=also, **health)
            previous = (place, weights)
            first = first or member
        except CurvError as problem:
            problems.append(problem)
            point = TrackPoint(
                step=step, run=place, checkpoint=member.name, error=error_info(problem)
            )
            journal.find(BAD_CHECKPOINT, member.name, f"{member.name}: {problem.message}")
        points.append(point)
        journal.item(point)
        for note in member.notes:
            if note not in journal.notes:
                journal.note(note)
        if member is not first:
            member.release()
    if problems and len(problems) == len(points):
        raise problems[0]
    result = TrackResult(
        points=points,
        learning_rate=options.lr,
        edge=2 / options.lr if options.lr else None,
        failed=len(problems),
    )
    _findings(journal, result)
    subjects = {member.subject.name: member.subject for member in members}

    def look(point: TrackPoint) -> str:
        return again("gradients", subjects[point.checkpoint], {}) or "curvcli gradients"

    development(journal, points, options.train_batch, look)
    # What explains the others comes first: the data before training, and notes last.
    causes = (RUN_DIED.id, SUSPICIOUS.id, BAD_CHECKPOINT.id)
    journal.findings.sort(key=lambda f: (_GRAVITY[f.severity], f.rule not in causes))
    return journal.answer(result)


def _kept_point(
    journal: Journal,
    member: Subject,
    options: TrackOptions,
    guess_N: Tensor | None,
    index: int,
    known: Known,
    log: RunLog,
) -> tuple[TrackPoint, Tensor]:
    """`_point`, from the log where it is there."""
    operator = Hessian(member.objective, memory=member.spec.memory_bytes, wanted=4)
    if options.state is None:
        return _point(journal, member, operator, options, guess_N, index, known, log)
    figures = replace(options, state=None, timeout=None, train_batch=None, figure=[])
    name = f"{member.fingerprint()} {member.spec.seed} {index} {known} {figures}"

    def found() -> Kept:
        point, next_N = _point(journal, member, operator, options, guess_N, index, known, log)
        return {"point": packed(point), "guess": next_N}

    kept = saved.step(log, journal, name, found)
    return unpacked(kept["point"], TrackPoint), kept["guess"].to(operator.device)


def _point(
    journal: Journal,
    member: Subject,
    operator: Hessian,
    options: TrackOptions,
    guess_N: Tensor | None,
    index: int,
    known: Known,
    log: RunLog,
) -> tuple[TrackPoint, Tensor]:
    """The figures of one checkpoint, and what the next one starts from."""
    objective = member.objective
    logged = Logged(operator, log)
    # Another random part for each checkpoint: the guess depends on those before.
    seed = member.spec.seed + 7919 * index
    ends = _ends(journal, member, operator, logged, options, guess_N, seed)
    found, values = ends.found, ends.values
    check = _checked(journal, member, operator, found)
    before = objective.cost.matvecs
    estimate = deflated_trace(
        logged, found.vectors_KN, [float(v) for v in found.values_K], options.probes,
        torch.Generator().manual_seed(seed + 1), journal.stop,
    )  # fmt: skip
    traced = objective.cost.matvecs
    norm = float(operator.ranks.norm(operator.gradient))
    lower, upper = ends.reach
    height = objective.loss - options.loss_floor
    stationarity = stationarity_of(norm, found.norm, height)
    whole = Whole(values[0], found.vectors_KN[0], lower, upper)
    beside = _beside_limit(member, operator, known, options, journal, whole, log)
    point = TrackPoint(
        step=known.step,
        run=known.run,
        optimizer=known.optimizer.kind if known.optimizer else None,
        learning_rate=beside.rate,
        momentum=momentum_of(known.optimizer),
        limit=beside.limit,
        preconditioned=beside.preconditioned,
        checkpoint=member.name,
        loss=objective.loss,
        gradient_norm=norm,
        stationarity=stationarity if stationarity < float("inf") else None,
        lambda_max=values[0],
        lambda_min=values[-1],
        reach=Reach(lower, upper, options.probability),
        trace=TrackedTrace(estimate.value, estimate.standard_error) if estimate else None,
        edge=beside.edge,
        sharpness_ratio=beside.ratio,
        sharpness_ratio_interval=beside.interval,
        warm=ends.warm,
        matvecs=found.matvecs,
        trace_matvecs=traced - before,
        limit_matvecs=objective.cost.matvecs - traced,
        hvp_check=check.difference,
        stationarity_interval=stationarity_interval(
            norm, (max(0.0, found.norm - values[0].residual), max(abs(lower), abs(upper))), height
        ),
    )
    return point, _guess(found.vectors_KN)


class _Ends(NamedTuple):
    """The two ends of one checkpoint's spectrum."""

    found: LanczosResult
    values: list[TrackedValue]
    """Those of entries that no sample touches among them."""
    reach: tuple[float, float]
    warm: bool
    """Whether the run began near an eigenvector."""


def _ends(
    journal: Journal,
    member: Subject,
    operator: Hessian,
    logged: Logged,
    options: TrackOptions,
    guess_N: Tensor | None,
    seed: int,
) -> _Ends:
    """λ_max and λ_min, from a guess where it fits."""
    wanted = Wanted(1, 1) if operator.n > 1 else Wanted(1, 0)
    if guess_N is not None and len(guess_N) != operator.length:
        guess_N = None
    state = start(operator, operator.plan.capacity, seed, guess_N)
    found = lanczos(
        logged, wanted, tol=options.tol, max_matvecs=options.max_matvecs,
        probability=1 - options.probability, recheck=0, state=state, stop=journal.stop,
    )  # fmt: skip
    pairs, rounding = by_recurrence(journal, operator, found)
    zeros = untouched_zeros(member.objective, at_most=1)
    if found.status != "converged":
        journal.cut_short()
        journal.find(
            NOT_CONVERGED, member.name,
            f"{member.name}: the eigenvalues have not converged within {found.matvecs} products",
            value=float(found.matvecs), threshold=float(options.max_matvecs),
        )  # fmt: skip
    reach = min([found.lower - rounding, *zeros]), max([found.upper + rounding, *zeros])
    return _Ends(found, _with_zeros(pairs, zeros), reach, state.share < 1.0)


def _with_zeros(pairs: list[Eigenpair], zeros: list[float]) -> list[TrackedValue]:
    """The largest and the smallest, those of entries that no sample touches among them."""
    values = [TrackedValue(p.value, p.residual, p.converged) for p in pairs]
    if not zeros:
        return values
    zero = TrackedValue(0.0, 0.0, True)
    return [
        max(values[0], zero, key=lambda v: v.value),
        min(values[-1], zero, key=lambda v: v.value),
    ]


def _checked(journal: Journal, member: Subject, operator: Hessian, found: LanczosResult) -> Checked:
    """One product of a checkpoint against gradients; the recurrence has the product."""
    if journal.stop() is not None:
        return Checked(None, False)
    part = journal.part(f"{member.name}: ")
    one_K = torch.eye(len(found.values_K), dtype=operator.dtype, device=operator.device)[0]
    check = check_products(part, operator, found.vectors_KN[0], recurred(found, one_K))
    journal.gather(part, member.name)
    return check


class _Beside(NamedTuple):
    """λ beside the limit of an optimizer."""

    rate: float | None
    limit: float | None
    preconditioned: TrackedValue | None
    edge: Edge | None
    ratio: float | None
    interval: tuple[float, float] | None


def _beside_limit(
    member: Subject,
    operator: Hessian,
    known: Known,
    options: TrackOptions,
    journal: Journal,
    whole: Whole,
    log: RunLog,
) -> _Beside:
    """Of the optimizer that the checkpoint was made by, or of gradient descent at ``--lr``."""
    rate, limit = limit_of(known.optimizer, options.lr)
    part, found = journal.part(f"{member.name}: "), None
    if limit is not None:
        found = held(member, known, options, operator, whole, part, log)
    if found is not None and not found.settled:
        part.note("Adam has taken few steps: λ/limit is no measure of stability yet")
    journal.gather(part, member.name)
    if found is None or limit is None:
        return _Beside(rate, limit, None, None, None, None)
    edge = edge_of(found.low, found.high, limit)
    if not found.settled:
        edge = "undecided"
    return _Beside(
        rate,
        limit,
        found.value if found.adaptive else None,
        edge,
        found.value.value / limit,
        (found.low / limit, found.high / limit),
    )


def _guess(vectors_KN: Tensor) -> Tensor:
    """What the next checkpoint starts from: both extreme eigenvectors."""
    guess_N: Tensor = vectors_KN.sum(0)
    return guess_N


def _findings(journal: Journal, result: TrackResult) -> None:
    for edge, rule, told in (
        (
            "above",
            EDGE_ABOVE,
            "above the edge of stability: the optimizer's steps grow there",
        ),
        ("at", EDGE_AT, "at the edge of stability"),
    ):
        points = [p for p in result.points if p.edge == edge and p.lambda_max is not None]
        if points:
            last = points[-1]
            journal.find(
                rule, last.checkpoint,
                f"{len(points)} of {len(result.points)} checkpoints are {told}",
                value=last.sharpness_ratio, threshold=1.0,
            )  # fmt: skip
