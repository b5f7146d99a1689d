"""The limit of stability of the optimizer that a checkpoint was trained with."""

from pathlib import Path
from typing import NamedTuple

from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.track.command import TrackOptions
from curvcli.analyses.track.result import TrackedValue
from curvcli.errors import CurvError
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.loading.checkpoints.moments import read_preconditioner
from curvcli.loading.checkpoints.training import Optimizer
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.preconditioned import PreconditionedHessian

ADAPTIVE = ("adam", "adamw")


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


def preconditioned(
    member: Subject,
    optimizer: Optimizer | None,
    like: Hessian,
    options: TrackOptions,
    journal: Journal,
) -> tuple[TrackedValue, float] | None:
    """Largest eigenvalue of D⁻¹H and how far the spectrum reaches; None without the state of Adam."""
    if optimizer is None or optimizer.kind not in ADAPTIVE or member.spec.checkpoint is None:
        return None
    objective = member.objective
    shapes = {n: tuple(p.shape) for n, p in objective.model.named_parameters()}
    path = Path(member.spec.checkpoint)
    try:
        found = read_preconditioner(path, shapes, unsafe_pickle=member.spec.unsafe_pickle)
    except CurvError as problem:
        journal.note(f"{member.name}: no preconditioned sharpness: {problem.message}")
        return None
    diagonal_N = objective.flatten([found.diagonal[n] for n in objective.names])
    operator = PreconditionedHessian(objective, diagonal_N=diagonal_N, like=like)
    top = lanczos(
        operator, Wanted(1, 0), tol=options.tol, max_matvecs=options.max_matvecs,
        capacity=like.plan.capacity, seed=member.spec.seed, probability=1 - options.probability,
        recheck=0, stop=journal.stop,
    )  # fmt: skip
    value, residual = float(top.values_K[0]), float(top.bounds_K[0])
    return TrackedValue(value, residual, top.status == "converged"), top.upper
