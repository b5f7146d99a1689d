"""`curvcli taylor`: how far the second-order model of the loss can be trusted, and where its best step lies."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, Stage, parse_seconds
from curvcli.analyses.taylor.line import Model, measure
from curvcli.analyses.taylor.result import TaylorResult
from curvcli.analyses.taylor.view import view

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.operators.curvature.hessian import Hessian

PLAIN = ("gradient", "top", "bottom", "random")
STEPS = ("newton", "newton-npc", "saddle-free", "gauss-newton", "lbfgs")


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
    from curvcli.linalg.lanczos.lanczos import lanczos
    from curvcli.linalg.lanczos.ritz import Wanted
    from curvcli.linalg.operator import ROUNDING
    from curvcli.linalg.vectors import euclidean_norm
    from curvcli.operators.curvature.hessian import Hessian
    from curvcli.operators.surface.line import Line

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
            measure(name, model, Line(objective, delta_N, operator), norm, trust, points, whole)
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
    from curvcli.operators.surface.steps import StepMaker

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

    from curvcli.loading.checkpoints.formats import open_checkpoint
    from curvcli.loading.models.model import load_weights

    objective = context.objective
    other = copy.deepcopy(objective.model)
    checkpoint = open_checkpoint(Path(path or ""), context.spec.unsafe_pickle)
    context.notes.extend(load_weights(other, checkpoint, context.spec.allow_partial))
    there = dict(other.named_parameters())
    return objective.flatten([there[name].detach() for name in objective.names]) - objective.flat()


ANALYSIS = Analysis(taylor, view)
