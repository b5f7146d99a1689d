"""`curvcli taylor`: how far the second-order model of the loss can be trusted, and where its best step lies."""

import torch
from torch import Tensor

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.certified import by_recurrence
from curvcli.analyses.shared.spectrum.checked import Checked, check_products
from curvcli.analyses.shared.spectrum.eigenpairs import Reach, critical_rates
from curvcli.analyses.shared.spectrum.matrices import untouched_zeros
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.taylor.command import PLAIN, STEPS, TaylorOptions
from curvcli.analyses.taylor.line import Model, measure
from curvcli.analyses.taylor.result import Direction, TaylorResult
from curvcli.errors import LossError, UsageError, did_you_mean
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.operator import random_unit_vector
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.surface.line import Line
from curvcli.operators.surface.steps import StepMaker

# With which the reach holds.
_PROBABILITY = 0.999


def run(subject: Subject, options: TaylorOptions, journal: Journal) -> Answer[TaylorResult]:
    """Answer `curvcli taylor`; see `TaylorOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    for name in options.direction:
        if name not in PLAIN + STEPS:
            raise UsageError(
                f"there is no direction {name!r}.{did_you_mean(name, PLAIN + STEPS)}",
                f"directions: {', '.join(PLAIN + STEPS)}",
            )
    journal.progress(Stage("loading", 0, None))
    objective = subject.objective
    operator = Hessian(objective, memory=subject.spec.memory_bytes, wanted=10)
    journal.progress(Stage("eigenvectors", 0, None))
    found = lanczos(
        operator, Wanted(1, 1 if operator.n > 1 else 0), tol=options.tol, max_matvecs=options.max_matvecs,
        capacity=operator.plan.capacity, seed=subject.spec.seed, recheck=0, stop=journal.stop,
        probability=1 - _PROBABILITY,
    )  # fmt: skip
    if found.status != "converged":
        journal.cut_short(
            "the extreme eigenvectors have not converged (raise --max-matvecs): top and bottom are approximate"
        )
    pairs, rounding = by_recurrence(journal, operator, found)
    zeros = untouched_zeros(objective, at_most=1)
    lower, upper = min([found.lower - rounding, *zeros]), max([found.upper + rounding, *zeros])
    eigenvectors = {"top": found.vectors_KN[0], "bottom": found.vectors_KN[-1]}
    names = list(options.direction) or ([] if options.to else list(PLAIN))
    results = []
    for name in [*names, *([f"to {options.to}"] if options.to else [])]:
        if journal.stop() is not None:
            journal.cut_short(f"ended before {name}")
            break
        journal.progress(Stage(name, 0, None))
        delta_N = (
            _way_to(subject, options.to) if options.to and name == f"to {options.to}"
            else _direction(subject, journal, operator, name, eigenvectors, options.max_matvecs)
        )  # fmt: skip
        if delta_N is None:
            continue
        results.append(_measured(operator, name, delta_N, options))
    check = Checked(None, False)
    if journal.stop() is None:
        top_N = found.vectors_KN[0]
        check = check_products(journal, operator, top_N, operator.matvec(top_N))
    top = float(found.values_K[0])
    return journal.answer(
        TaylorResult(
            directions=results,
            critical_learning_rate=2 / top if top > 0 else None,
            critical_learning_rate_interval=critical_rates(top - pairs[0].residual, upper),
            lambda_max=top,
            lambda_max_residual=pairs[0].residual,
            reach=Reach(lower, upper, _PROBABILITY),
            loss=objective.loss,
            gradient_norm=float(operator.ranks.norm(operator.gradient)),
            trust=options.trust,
            parameters=operator.objective.dimension,
            hvp_check=check.difference,
        )
    )


def _measured(operator: Hessian, name: str, delta_N: Tensor, options: TaylorOptions) -> Direction:
    """The model along Δ beside the truth."""
    objective, ranks = operator.objective, operator.ranks
    slope = float(ranks.dot(operator.gradient, delta_N))
    curvature = float(ranks.dot(delta_N, operator.matvec(delta_N)))
    return measure(
        name,
        Model(objective.loss, slope, curvature),
        Line(objective, delta_N, operator),
        float(ranks.norm(delta_N)),
        options.trust,
        options.points,
        name not in PLAIN,
    )


def _direction(
    subject: Subject,
    journal: Journal,
    operator: Hessian,
    name: str,
    eigenvectors: dict[str, Tensor],
    max_matvecs: int,
) -> Tensor | None:
    """Δ by name: unit vectors that point downhill, or whole steps."""
    gradient_N, ranks = operator.gradient, operator.ranks
    if name in STEPS:
        maker = StepMaker(
            operator, memory=subject.spec.memory_bytes, tol=1e-6, max_matvecs=max_matvecs, damping=1e-3,
            pairs=10, history=8, seed=subject.spec.seed, stop=journal.stop,
        )  # fmt: skip
        try:
            delta_N = maker.makers[name]().delta_N
        except LossError as error:
            journal.note(f"{name} is left out: {error.message}")
            return None
    elif name == "gradient":
        length = float(ranks.norm(gradient_N))
        delta_N = -gradient_N / max(length, torch.finfo(operator.dtype).tiny)
    elif name == "random":
        generator = torch.Generator().manual_seed(subject.spec.seed + 1)
        delta_N = random_unit_vector(operator, generator)
    else:
        delta_N = eigenvectors[name]
    if float(ranks.norm(delta_N)) == 0:
        journal.note(f"{name} is left out: the direction is zero")
        return None
    downhill = name in STEPS or float(ranks.dot(gradient_N, delta_N)) <= 0
    return delta_N if downhill else -delta_N


def _way_to(subject: Subject, path: str) -> Tensor:
    """θ' − θ for the weights θ' in another checkpoint."""
    objective, there = subject.objective, subject.weights_in(path)
    return objective.flatten([there[name] for name in objective.names]) - objective.flat()
