"""The limit of stability of the optimizer that a checkpoint was trained with."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.track.command import TrackOptions
from curvcli.analyses.track.result import Edge, TrackedValue
from curvcli.errors import CurvError, some
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.run_log import Logged, RunLog
from curvcli.linalg.statistics.student import quantile
from curvcli.loading.checkpoints.moments import Preconditioner, read_preconditioner
from curvcli.loading.checkpoints.training import Optimizer, Steps, given, steps_by_name
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.preconditioned import PreconditionedHessian
from curvcli.operators.curvature.spread import spread

ADAPTIVE = ("adam", "adamw")
# D has settled after so many times the steps over which Adam averages gradients: it is taken as constant over these.
_SETTLED = 10
# So many parts of the data, or a few more, are compared where there are fewer batches.
_GROUPS = 8
# "At" the edge of stability: λ_max within this of 2/lr (the range that training monitors use).
_EDGE = 0.3
# A share of the largest √v̂ at which gradients are rounding: a hundred times the last place of float32.
_SILENT = 1e-5


class Known(NamedTuple):
    """What is known of a checkpoint before its curvature is."""

    step: int | None
    run: str | None
    optimizer: Optimizer | None


def limit_of(optimizer: Optimizer | None, asked: float | None) -> tuple[float | None, float | None]:
    """(learning rate, λ at which steps grow); a rate that was asked for is that of gradient descent."""
    if asked is not None:
        return asked, 2 / asked
    rate = optimizer.learning_rate if optimizer else None
    if optimizer is None or not rate or optimizer.limit is None:
        return rate, None
    return rate, optimizer.limit / rate


def momentum_of(optimizer: Optimizer | None) -> float | None:
    """β of momentum, β₁ of Adam."""
    if optimizer is None:
        return None
    return optimizer.betas[0] if optimizer.kind in ADAPTIVE else optimizer.momentum


class Whole(NamedTuple):
    """The Hessian over all parameters."""

    value: TrackedValue
    """λ_max,"""
    vector_N: Tensor
    """and its eigenvector."""
    lower: float
    upper: float
    """How far the spectrum reaches."""


class Held(NamedTuple):
    """The eigenvalue that is held against the limit: of the parameters that the optimizer moves."""

    value: TrackedValue
    low: float
    high: float
    """Where it lies: residual, reach, and its spread over the data at 95 %."""
    adaptive: bool
    """Of D⁻¹H."""
    settled: bool
    """Whether D is that of many steps."""


def held(
    member: Subject,
    known: Known,
    options: TrackOptions,
    like: Hessian,
    whole: Whole,
    journal: Journal,
    log: RunLog,
) -> Held | None:
    """The eigenvalue that decides about the optimizer's steps; None where it cannot be had.

    Args:
        member: the checkpoint.
        known: its optimizer.
        options: with ``--lr`` the optimizer is gradient descent, over the parameters that the known one moves.
        like: the Hessian.
        whole: what is known of the Hessian over all parameters.
        journal: told what was left out.
        log: of products.
    """
    optimizer = known.optimizer
    adaptive = options.lr is None and optimizer is not None and optimizer.kind in ADAPTIVE
    settled, told = True, True
    if optimizer is None or member.spec.checkpoint is None:
        diagonal = None
    elif adaptive:
        found = _read_diagonal(member, like, journal)
        if found is None:
            return None
        settled = found.steps >= round(_SETTLED / (1 - optimizer.betas[0]))
        divided = found.of_steps
        diagonal = _without_silent(journal, {n: divided[n] for n in like.objective.names})
    else:
        steps = _steps(member, optimizer, like, journal)
        told = steps is not None
        diagonal = _over_rates(steps, like, journal) if steps else None
    value, vector_N, lower, upper = whole
    operator = like
    if diagonal is not None:
        diagonal_N = like.objective.flatten([diagonal[n] for n in like.objective.names])
        operator = PreconditionedHessian(like.objective, diagonal_N=diagonal_N, like=like)
        top = lanczos(
            Logged(operator, log), Wanted(1, 0), tol=options.tol, max_matvecs=options.max_matvecs,
            capacity=like.plan.capacity, seed=member.spec.seed, probability=1 - options.probability,
            recheck=0, stop=journal.stop,
        )  # fmt: skip
        value = TrackedValue(
            float(top.values_K[0]), float(top.bounds_K[0]), top.status == "converged"
        )
        upper, vector_N = top.upper, top.vectors_KN[0]
    error = _spread(operator, vector_N) if journal.stop() is None else 0.0
    low, high = value.value - value.residual - error, upper + error
    if not told:
        low = lower  # that of a part of the parameters lies between the ends of the whole spectrum
    return Held(value, low, high, adaptive, settled)


def _spread(operator: Hessian, vector_N: Tensor) -> float:
    """Half of the 95 % interval of vᵀHv over the data; 0 where it has one part only."""
    objective = operator.objective
    parts = list(objective.batches)
    if objective.splittable and len(parts) < _GROUPS:
        size = math.ceil(objective.samples / _GROUPS)
        parts = [piece for batch in parts for piece in batch.pieces(size)]
        operator = operator.twin(replace(objective, batches=parts))
    errors = spread(operator, vector_N[None], _GROUPS).standard_errors_K
    return quantile(0.95, max(1, len(parts) - 1)) * errors[0] if errors else 0.0


def _shapes(member: Subject) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in member.objective.model.named_parameters()}


def _gradient(like: Hessian) -> Callable[[], dict[str, Tensor]]:
    objective = like.objective
    return lambda: dict(zip(objective.names, objective.views(like.gradient), strict=True))


def _read_diagonal(member: Subject, like: Hessian, journal: Journal) -> Preconditioner | None:
    path = Path(member.spec.checkpoint or "")
    try:
        found = read_preconditioner(
            path, _shapes(member), journal.notes,
            unsafe_pickle=member.spec.unsafe_pickle, gradient=_gradient(like),
        )  # fmt: skip
    except CurvError as problem:
        journal.note(f"no preconditioned sharpness: {problem.message}")
        return None
    _say_idle(journal, [n for n in found.missing if n in like.objective.names])
    return found


def _steps(member: Subject, optimizer: Optimizer, like: Hessian, journal: Journal) -> Steps | None:
    """Which parameters the optimizer moves; None where that cannot be told, all where it has as many as the model."""
    path, shapes = Path(member.spec.checkpoint or ""), _shapes(member)
    try:
        return steps_by_name(optimizer, shapes, path, journal.notes, _gradient(like))
    except CurvError as problem:
        rates = {group.get("lr") for group in optimizer.state_dict["param_groups"]}
        if given(optimizer) == len(shapes) and len(rates) == 1:
            return Steps(dict.fromkeys(shapes, 1.0), {})
        journal.note(f"which parameters were trained is not known: {problem.message}")
        return None


def _over_rates(steps: Steps, like: Hessian, journal: Journal) -> dict[str, Tensor] | None:
    """D of gradient descent: 1 over each parameter's rate in units of the first; None where that is 1 for all."""
    objective = like.objective
    rates = {n: steps.rates[n] for n in objective.names}
    if all(rate == 1.0 for rate in rates.values()) or not any(rates.values()):
        return None
    _say_idle(journal, [n for n, rate in rates.items() if not rate])
    return {
        n: torch.full_like(p, 1 / rates[n] if rates[n] else math.inf, dtype=torch.float64)
        for n, p in zip(objective.names, objective.parameters, strict=True)
    }


def _say_idle(journal: Journal, idle: list[str]) -> None:
    if idle:
        journal.note(
            f"λ/limit is that of the parameters that the optimizer moves, without {some(idle, 3)}"
        )


def _without_silent(journal: Journal, diagonal: dict[str, Tensor]) -> dict[str, Tensor]:
    """D with ∞ where training had no gradient beyond rounding, which takes these parameters out of D⁻¹H.

    The bias before a BatchNorm is such: it has curvature under running statistics, and none in training.
    """
    largest = max((m for d in diagonal.values() if (m := float(d.max())) < math.inf), default=0.0)
    silent = [n for n, d in diagonal.items() if float(d.max()) < _SILENT * largest]
    if silent:
        journal.note(
            f"without a gradient in training, and left out of the preconditioned sharpness: {some(silent, 3)}"
        )
    return {n: torch.full_like(d, math.inf) if n in silent else d for n, d in diagonal.items()}


def edge_of(low: float, high: float, limit: float | None) -> Edge | None:
    """Where λ, which lies between two numbers, is beside the limit."""
    if limit is None:
        return None
    below, above = ((1 + sign * _EDGE) * limit for sign in (-1, 1))
    if low > above:
        return "above"
    if high < below:
        return "below"
    return "at" if below <= low and high <= above else "undecided"
