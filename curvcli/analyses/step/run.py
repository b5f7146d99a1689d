"""`curvcli step`: what one step of each method of optimisation would do from here."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, Stage, parse_seconds
from curvcli.report.data import Block, Column, Facts, Number, Sentence, Table
from curvcli.report.numbers import number

METHODS = ("gradient", "newton", "newton-npc", "saddle-free", "gauss-newton", "lbfgs")


class MethodStep(Struct, frozen=True):
    """One step by one method."""

    name: str
    norm: Annotated[Number, Meta(description="‖Δθ‖")]
    predicted_change: Annotated[Number, Meta(description="gᵀΔ + ½ ΔᵀHΔ")]
    true_change: Annotated[Number, Meta(description="L(θ + Δ) − L(θ)")]
    matvecs: Annotated[int, Meta(description="products spent on finding the step")]
    gradients: Annotated[int, Meta(description="gradients spent on finding the step")]
    status: Annotated[str, Meta(description="how it was found")]
    residual: Annotated[
        Number, Meta(description="of the linear system, relative; null where none is solved")
    ]
    heads_for_saddle: Annotated[
        bool | None,
        Meta(description="climbs along known negative curvature; null where none is known"),
    ]


class StepResult(Struct, frozen=True):
    """One step by each method."""

    methods: list[MethodStep]
    loss: float
    gradient_norm: float
    negative_curvature: Annotated[
        Number, Meta(description="lowest Ritz value, where it is below zero")
    ]
    best: Annotated[str | None, Meta(description="the method whose step lowers the loss most")]
    saved: Annotated[
        str | None, Meta(description="file with the stepped weights of the best method")
    ]
    parameters: int


def step(
    context: Context,
    *,
    method: Annotated[list[str], f"Only this method; repeatable: {', '.join(METHODS)}."] = [],  # noqa: B006
    save: Annotated[
        str | None, "Write the weights after the best step to this safetensors file."
    ] = None,
    damping: Annotated[
        float, Meta(ge=0, description="Relative to ‖H‖, of Gauss-Newton and saddle-free Newton.")
    ] = 1e-3,
    tol: Annotated[
        float, Meta(gt=0, description="Relative residual of the linear systems.")
    ] = 1e-6,
    max_matvecs: Annotated[int, Meta(ge=1, description="Products of one method at most.")] = 200,
    pairs: Annotated[
        int, Meta(ge=1, description="Eigenpairs at each end for saddle-free Newton.")
    ] = 10,
    history: Annotated[int, Meta(ge=1, description="Steps that L-BFGS learns from.")] = 8,
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None,
) -> StepResult:
    """One step by each method: its length, predicted and true change of the loss.

    gradient (exact line minimum of the model), newton (MINRES, through negative curvature), newton-npc (MINRES
    that stops at negative curvature and follows it), saddle-free (|H|⁻¹ on computed eigenvectors), gauss-newton
    (damped, conjugate gradients), lbfgs (a history of a few line-searched steps).

    Args:
        context: the target.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    import torch

    from curvcli.errors import LossError, UsageError, did_you_mean
    from curvcli.linalg.vectors import euclidean_norm
    from curvcli.operators.curvature.hessian import Hessian
    from curvcli.operators.surface.line import Line
    from curvcli.operators.surface.steps import StepMaker, ascent_in_negative_curvature, save_step

    for name in method:
        if name not in METHODS:
            raise UsageError(
                f"there is no method {name!r}.{did_you_mean(name, METHODS)}",
                f"methods: {', '.join(METHODS)}",
            )
    context.limit_time(parse_seconds(timeout))
    context.progress(Stage("loading", 0, None))
    objective = context.objective
    hessian = Hessian(objective, memory=context.spec.memory_bytes, wanted=2 * pairs)
    maker = StepMaker(
        hessian, memory=context.spec.memory_bytes, tol=tol, max_matvecs=max_matvecs, damping=damping, pairs=pairs,
        history=history, seed=context.spec.seed, stop=context.stop,
    )  # fmt: skip
    context.progress(Stage("eigenpairs", 0, None))
    found = maker.found
    gradient_N = maker.gradient_N
    made: list[tuple[MethodStep, torch.Tensor]] = []
    for name in method or METHODS:
        if context.stop() is not None:
            context.incomplete = True
            context.notes.append(f"ended before {name}")
            break
        context.progress(Stage(name, 0, None))
        before = objective.cost.matvecs, objective.cost.gradients
        try:
            taken = maker.makers[name]()
        except LossError as error:
            if method:
                raise
            context.notes.append(f"{name} is left out: {error.message}")
            continue
        spent = objective.cost.matvecs - before[0], objective.cost.gradients - before[1]
        delta_N = taken.delta_N
        curved = float(torch.dot(delta_N, hessian.matvec(delta_N)))
        predicted = float(torch.dot(gradient_N, delta_N)) + 0.5 * curved
        true = Line(objective, delta_N, hessian)(1.0) - objective.loss
        norm = float(euclidean_norm(delta_N))
        ascent = ascent_in_negative_curvature(found, gradient_N, delta_N)
        threshold = 1e-6 * norm * float(euclidean_norm(gradient_N))
        made.append(
            (
                MethodStep(
                    name, norm, predicted, true, *spent, taken.status, taken.residual,
                    None if ascent is None else ascent > threshold,
                ),
                delta_N,
            )
        )  # fmt: skip
    finite = [m for m in made if m[0].true_change is not None and m[0].true_change < 0]
    best = min(finite, key=lambda m: m[0].true_change or 0.0) if finite else None
    if save is not None:
        if best is None:
            raise LossError(
                "no step lowers the loss, so none is saved", "drop --save, or try other methods"
            )
        save_step(objective, best[1], save, _metadata(context, best[0]))
    lowest = float(found.ritz_values_M[0])
    result = StepResult(
        methods=[m for m, _ in made],
        loss=objective.loss,
        gradient_norm=float(euclidean_norm(gradient_N)),
        negative_curvature=lowest if lowest < -1e-6 * found.norm else None,
        best=best[0].name if best else None,
        saved=save,
        parameters=objective.dimension,
    )
    for taken_step in result.methods:
        if taken_step.heads_for_saddle:
            context.find(
                "step.saddle", "note", taken_step.name,
                f"the {taken_step.name} step climbs along negative curvature: it is attracted by a saddle",
                value=taken_step.true_change, threshold=0.0,
            )  # fmt: skip
    return result


def _metadata(context: Context, taken: MethodStep) -> dict[str, str]:
    """What was done, as the strings that safetensors can hold."""
    described = context.target_info()
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


def view(result: StepResult) -> list[Block]:
    """One row for each method."""
    facts = Facts(
        [
            ("loss", result.loss),
            ("gradient norm", result.gradient_norm),
            ("lowest curvature", result.negative_curvature),
            ("saved", result.saved),
        ]
    )
    table = Table(
        "One step by each method",
        (
            Column("method", numeric=False),
            Column("‖Δθ‖"),
            Column("predicted"),
            Column("true"),
            Column("products"),
            Column("to saddle", numeric=False),
            Column("how", numeric=False),
        ),
        [
            (
                m.name,
                m.norm,
                m.predicted_change,
                m.true_change,
                m.matvecs,
                m.heads_for_saddle,
                m.status,
            )
            for m in result.methods
        ],
        "predicted and true: change of the loss. to saddle: climbs along negative curvature.",
    )
    if result.best is None:
        return [facts, table, Sentence("No step lowers the loss.", "plain")]
    change = next(m.true_change for m in result.methods if m.name == result.best)
    return [
        facts,
        table,
        Sentence(f"The {result.best} step lowers the loss most, by {number(-(change or 0.0))}."),
    ]


ANALYSIS = Analysis(step, view)
