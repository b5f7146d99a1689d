"""The limit of stability of the optimizer that a checkpoint was trained with."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.track.command import TrackOptions
from curvcli.analyses.track.result import TrackedValue
from curvcli.errors import CurvError, some
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.run_log import Logged, RunLog
from curvcli.loading.checkpoints.moments import read_preconditioner
from curvcli.loading.checkpoints.training import Optimizer
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.preconditioned import PreconditionedHessian

ADAPTIVE = ("adam", "adamw")
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


def preconditioned(
    member: Subject,
    optimizer: Optimizer | None,
    like: Hessian,
    options: TrackOptions,
    journal: Journal,
    log: RunLog,
) -> tuple[TrackedValue, float] | None:
    """Largest eigenvalue of D⁻¹H and how far the spectrum reaches; None without the state of Adam."""
    if optimizer is None or optimizer.kind not in ADAPTIVE or member.spec.checkpoint is None:
        return None
    objective = member.objective
    shapes = {n: tuple(p.shape) for n, p in objective.model.named_parameters()}
    path = Path(member.spec.checkpoint)
    try:
        found = read_preconditioner(
            path, shapes, journal.notes, unsafe_pickle=member.spec.unsafe_pickle
        )
    except CurvError as problem:
        journal.note(f"{member.name}: no preconditioned sharpness: {problem.message}")
        return None
    diagonal = _without_silent(journal, {n: found.diagonal[n] for n in objective.names})
    diagonal_N = objective.flatten([diagonal[n] for n in objective.names])
    operator = PreconditionedHessian(objective, diagonal_N=diagonal_N, like=like)
    top = lanczos(
        Logged(operator, log), Wanted(1, 0), tol=options.tol, max_matvecs=options.max_matvecs,
        capacity=like.plan.capacity, seed=member.spec.seed, probability=1 - options.probability,
        recheck=0, stop=journal.stop,
    )  # fmt: skip
    value, residual = float(top.values_K[0]), float(top.bounds_K[0])
    return TrackedValue(value, residual, top.status == "converged"), top.upper


def _without_silent(journal: Journal, diagonal: dict[str, Tensor]) -> dict[str, Tensor]:
    """D with ∞ where training had no gradient beyond rounding, which takes these parameters out of D⁻¹H.

    The bias before a BatchNorm is such: it has curvature under running statistics, and none in training.
    """
    largest = max(float(d.max()) for d in diagonal.values())
    silent = [n for n, d in diagonal.items() if float(d.max()) < _SILENT * largest]
    if silent:
        journal.note(
            f"without a gradient in training, and left out of the preconditioned sharpness: {some(silent, 3)}"
        )
    return {n: torch.full_like(d, math.inf) if n in silent else d for n, d in diagonal.items()}
