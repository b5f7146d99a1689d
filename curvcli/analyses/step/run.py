"""`curvcli step`: what one step of each method of optimisation would do from here."""

import torch

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.checked import check_random_product
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.step.command import METHODS, StepOptions
from curvcli.analyses.step.findings import SADDLE
from curvcli.analyses.step.result import MethodStep, StepResult
from curvcli.errors import LossError, UsageError, did_you_mean
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.surface.line import Line, loss_resolution
from curvcli.operators.surface.steps import StepMaker, ascent_in_negative_curvature, save_step


def run(subject: Subject, options: StepOptions, journal: Journal) -> Answer[StepResult]:
    """Answer `curvcli step`; see `StepOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    for name in options.method:
        if name not in METHODS:
            raise UsageError(
                f"there is no method {name!r}.{did_you_mean(name, METHODS)}",
                f"methods: {', '.join(METHODS)}",
            )
    journal.progress(Stage("loading", 0, None))
    objective = subject.objective
    hessian = Hessian(objective, memory=subject.spec.memory_bytes, wanted=2 * options.pairs)
    maker = StepMaker(
        hessian, memory=subject.spec.memory_bytes, tol=options.tol, max_matvecs=options.max_matvecs,
        damping=options.damping, pairs=options.pairs, history=options.history,
        seed=subject.spec.seed, stop=journal.stop,
    )  # fmt: skip
    journal.progress(Stage("eigenpairs", 0, None))
    found = maker.found
    gradient_N = maker.gradient_N
    resolution = loss_resolution(hessian)
    made: list[tuple[MethodStep, torch.Tensor]] = []
    for name in options.method or METHODS:
        if journal.stop() is not None:
            journal.cut_short(f"ended before {name}")
            break
        journal.progress(Stage(name, 0, None))
        try:
            made.append(_taken(name, maker, hessian, resolution))
        except LossError as error:
            if options.method:
                raise
            journal.note(f"{name} is left out: {error.message}")
    finite = [m for m in made if m[0].true_change is not None and m[0].true_change < 0]
    best = min(finite, key=lambda m: m[0].true_change or 0.0) if finite else None
    if options.save is not None:
        if best is None:
            raise LossError(
                "no step lowers the loss, so none is saved", "drop --save, or try other methods"
            )
        save_step(objective, best[1], options.save, _metadata(subject, best[0]))
    lowest = float(found.ritz_values_M[0])
    check, _ = check_random_product(journal, hessian, subject.spec.seed)
    result = StepResult(
        methods=[m for m, _ in made],
        loss=objective.loss,
        gradient_norm=float(hessian.ranks.norm(gradient_N)),
        negative_curvature=lowest if lowest < -1e-6 * found.norm else None,
        best=best[0].name if best else None,
        as_good=_as_good(best[0], [m for m, _ in finite]) if best else [],
        saved=options.save,
        parameters=objective.dimension,
        hvp_check=check.difference,
    )
    for taken_step in result.methods:
        if taken_step.heads_for_saddle:
            journal.find(
                SADDLE, taken_step.name,
                f"the {taken_step.name} step climbs along negative curvature: it is attracted by a saddle",
                value=taken_step.true_change,
            )  # fmt: skip
    return journal.answer(result)


def _as_good(best: MethodStep, others: list[MethodStep]) -> list[str]:
    """The methods whose change of the loss cannot be told from that of the best."""
    reach = (best.true_change or 0.0) + 2 * (best.true_change_residual or 0.0)
    return [m.name for m in others if m is not best and (m.true_change or 0.0) <= reach]


def _taken(
    name: str, maker: StepMaker, hessian: Hessian, resolution: float
) -> tuple[MethodStep, torch.Tensor]:
    """One step, its figures, and Δθ."""
    objective, gradient_N, ranks = hessian.objective, maker.gradient_N, hessian.ranks
    before = objective.cost.matvecs, objective.cost.gradients
    taken = maker.makers[name]()
    spent = objective.cost.matvecs - before[0], objective.cost.gradients - before[1]
    delta_N = taken.delta_N
    curved = float(ranks.dot(delta_N, hessian.matvec(delta_N)))
    norm = float(ranks.norm(delta_N))
    ascent = ascent_in_negative_curvature(maker.found, gradient_N, delta_N, ranks)
    threshold = 1e-6 * norm * float(ranks.norm(gradient_N))
    step = MethodStep(
        name=name,
        norm=norm,
        predicted_change=float(ranks.dot(gradient_N, delta_N)) + 0.5 * curved,
        true_change=Line(objective, delta_N, hessian)(1.0) - objective.loss,
        true_change_residual=resolution,
        matvecs=spent[0],
        gradients=spent[1],
        status=taken.status,
        residual=taken.residual,
        heads_for_saddle=None if ascent is None else ascent > threshold,
    )
    return step, delta_N


def _metadata(subject: Subject, taken: MethodStep) -> dict[str, str]:
    """What was done, as the strings that safetensors can hold."""
    described = subject.info()
    return {
        "format": "pt",
        "curvcli": "step",
        "method": taken.name,
        "norm": repr(taken.norm),
        "predicted_change": repr(taken.predicted_change),
        "true_change": repr(taken.true_change),
        "from_sha256": (described.checkpoint_sha256 or "") if described else "",
        "data_sha256": (described.data_sha256 or "") if described else "",
    }
