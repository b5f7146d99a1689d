"""`curvcli hessian`: the ends of a curvature matrix's spectrum, each eigenvalue with its error."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from curvcli.analyses.hessian.layers import look_at_layers
from curvcli.analyses.hessian.result import HessianResult, Sampled
from curvcli.analyses.hessian.view import view
from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, Stage, parse_seconds
from curvcli.analyses.shared.eigenpairs import Eigenpair, Reach, certified_pairs, check_products
from curvcli.analyses.shared.matrices import (
    Chosen,
    DrawsOption,
    ExactOption,
    MatrixOption,
    OptimizerOption,
    PreconditionerInfo,
)

if TYPE_CHECKING:
    from curvcli.linalg.lanczos.lanczos import LanczosResult, Progress
    from curvcli.linalg.lanczos.ritz import Wanted
    from curvcli.operators.curvature.curvature import Curvature

CAPACITY = 200


def hessian(
    context: Context,
    *,
    matrix: MatrixOption = "hessian",
    top: Annotated[int, Meta(ge=0, description="Largest eigenvalues to find.")] = 10,
    bottom: Annotated[int, Meta(ge=0, description="Smallest eigenvalues to find.")] = 3,
    order: Annotated[
        Literal["value", "magnitude"],
        "What the top ones are: largest by value, or by magnitude (either sign).",
    ] = "value",
    tol: Annotated[
        float, Meta(gt=0, description="Converged when ρ ≤ tol · max(|λ|, 0.01 ‖H‖).")
    ] = 1e-3,
    max_matvecs: Annotated[int, Meta(ge=1, description="End after so many products.")] = 500,
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None,
    probability: Annotated[
        float, Meta(gt=0, lt=1, description="With which the reach at both ends holds.")
    ] = 0.999,
    recheck: Annotated[
        int, Meta(ge=0, description="Products spent on looking for missed copies of eigenvalues.")
    ] = 8,
    spread: Annotated[
        int,
        Meta(
            ge=0,
            description="Groups of samples of a single batch for the spread of each eigenvalue over the data; "
            "0: no spread.",
        ),
    ] = 8,
    state: Annotated[
        str | None, "Save the run in this file, and go on from it if it exists."
    ] = None,
    optimizer: OptimizerOption = None,
    draws: DrawsOption = 1,
    exact_rows: ExactOption = 256,
    per_layer: Annotated[bool, "The curvature of every layer beside that of the whole."] = False,
    per_block: Annotated[
        bool, "The same for numbered blocks, such as blocks.0 of a transformer, as wholes."
    ] = False,
    layer_probes: Annotated[
        int, Meta(ge=1, description="Random vectors for the traces and norms of layers.")
    ] = 8,
    layer_density: Annotated[
        int,
        Meta(
            ge=0,
            description="Random vectors for the spectral densities of layers and their heterogeneity; 0: none.",
        ),
    ] = 0,
) -> HessianResult:
    """Leading Hessian eigenvalues, with residuals and the reach of the rest.

    Thick-restart Lanczos on products with the Hessian of the loss at the checkpoint's weights, or with another
    curvature matrix. Every eigenvalue comes with a residual: some eigenvalue lies within value ± residual. The
    reach says how far the spectrum can extend beyond what was seen, with its probability.

    Args:
        context: the target.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    from curvcli.errors import UsageError
    from curvcli.linalg.lanczos.factorization import start
    from curvcli.linalg.lanczos.lanczos import lanczos
    from curvcli.linalg.lanczos.ritz import Wanted
    from curvcli.linalg.lanczos.state import load_state, save_state

    if top + bottom == 0:
        raise UsageError("no eigenvalue is asked for", "pass --top or --bottom")
    if per_layer and per_block:
        raise UsageError("--per-layer and --per-block were both asked for", "choose one of them")
    context.limit_time(parse_seconds(timeout))
    context.progress(Stage("loading", 0, None))
    objective = context.objective
    context.progress(Stage("planning", 0, None))
    wanted = Wanted(min(top, objective.n), min(bottom, objective.n), order)
    chosen = Chosen(matrix, draws, optimizer)
    operator, info = chosen.operator(context, wanted=wanted.count, preferred_capacity=CAPACITY)
    question = _Question(chosen, info, tol, probability, order, spread, top, bottom)
    if not (state or per_layer or per_block):
        whole = _whole(context, operator, wanted, exact_rows)
        if whole is not None:
            return _answer(context, operator, whole, question)[0]
    fingerprint = f"{context.fingerprint()} {chosen}" if state else ""
    path = Path(state) if state else None
    capacity = operator.plan.capacity
    if path is not None and path.exists():
        run = load_state(path, operator, capacity, fingerprint)
        context.notes.append(f"went on from {path.name} after {run.matvecs} products")
    else:
        run = start(operator, capacity, context.spec.seed)

    def report(progress: "Progress") -> None:
        expected = _expected(progress, recheck)
        detail = f"{progress.converged} of {progress.wanted} converged"
        context.progress(Stage("products", progress.matvecs, min(expected, max_matvecs), detail))

    found = lanczos(
        operator,
        wanted,
        tol=tol,
        max_matvecs=max_matvecs,
        probability=1 - probability,
        recheck=recheck,
        state=run,
        stop=context.stop,
        progress=report,
    )
    if path is not None:
        save_state(path, run, fingerprint)
    known = None
    if per_layer or per_block:
        from curvcli.operators.curvature.layer_spectra import leading

        known = leading(run)
    run.basis.drop()
    result, pairs = _answer(context, operator, _Found(found), question)
    if known is not None:
        layers = look_at_layers(
            context,
            operator,
            found,
            pairs,
            known,
            by="block" if per_block else "layer",
            probes=layer_probes,
            density_probes=layer_density,
            tol=tol,
            max_matvecs=max_matvecs,
            probability=probability,
        )
        result = msgspec.structs.replace(result, per_layer=layers)
    return result


class _Question(NamedTuple):
    """What was asked."""

    chosen: Chosen
    preconditioner: PreconditionerInfo | None
    tol: float
    probability: float
    order: Literal["value", "magnitude"]
    spread: int
    top: int
    bottom: int


class _Found(NamedTuple):
    """Pairs, and how many further eigenvalues are known exactly and alike."""

    pairs: "LanczosResult"
    others: int = 0
    rest: float = 0.0
    exact: bool = False
    """Whether these are all eigenvalues."""


def _whole(
    context: Context, operator: "Curvature[Any]", wanted: "Wanted", rows: int
) -> _Found | None:
    """All eigenvalues, where the matrix has few rows."""
    import numpy as np

    from curvcli.linalg.lanczos.lanczos import LanczosResult
    from curvcli.operators.curvature.gauss_newton import GaussNewton
    from curvcli.operators.curvature.gram import gram_spectrum

    if rows == 0 or not isinstance(operator, GaussNewton):
        return None
    context.progress(Stage("rows", 0, None))
    gram = gram_spectrum(operator, rows)
    if gram is None:
        return None
    context.notes.append(
        f"the whole spectrum was computed from the Gram matrix of {len(gram.values_R)} rows"
    )
    low = wanted.bottom if not gram.others else 0
    values_K = np.concatenate([gram.values_R[: wanted.top], gram.values_R[::-1][:low]])
    vectors_KN = gram.vectors(len(gram.values_R))
    chosen = [*range(min(wanted.top, len(gram.values_R))), *(-1 - i for i in range(low))]
    edges = [gram.values_R[-1], gram.values_R[0], *([gram.rest] if gram.others else [])]
    pairs = LanczosResult(
        values_K=values_K,
        bounds_K=np.full(len(values_K), gram.error),
        converged_K=(True,) * len(values_K),
        top=min(wanted.top, len(gram.values_R)),
        vectors_KN=vectors_KN[chosen],
        status="converged",
        matvecs=0,
        restarts=0,
        norm=float(gram.values_R[0]),
        lower=float(min(edges)),
        upper=float(max(edges)),
        ritz_values_M=gram.values_R[::-1].copy(),
        copies_found=0,
        rechecked=0,
        tails=(),
    )
    return _Found(pairs, gram.others, gram.rest, True)


def _answer(
    context: Context, operator: "Curvature[Any]", whole: _Found, question: _Question
) -> tuple[HessianResult, list[Eigenpair]]:
    """The answer, and the pairs without those known exactly, as they belong to the vectors of ``whole``."""
    import torch

    from curvcli.linalg.operator import ROUNDING
    from curvcli.linalg.vectors import euclidean_norm
    from curvcli.operators.curvature.fisher import Fisher

    objective = operator.objective
    found, order = whole.pairs, question.order
    context.vectors_KN = found.vectors_KN
    stopped = found.status in ("timeout", "interrupted")
    rounding = ROUNDING * torch.finfo(operator.dtype).eps * found.norm
    if stopped:
        context.notes.append(
            "ended early: residuals are those of the Lanczos recurrence, not of extra products"
        )
        pairs = [
            Eigenpair(float(v), float(b) + rounding, c, None)
            for v, b, c in zip(found.values_K, found.bounds_K, found.converged_K, strict=True)
        ]
        check = None
    else:
        certified = certified_pairs(context, operator, found, question.tol, question.spread)
        pairs, rounding = certified.pairs, certified.rounding
        check = check_products(context, operator, certified.vector_N, certified.product_N)
    sampled = None
    if isinstance(operator, Fisher):
        sampled = [Sampled(*q) for q in operator.quadratic(found.vectors_KN)]
    # Entries that no sample looks up: they are left out of vectors only where there is no weight decay.
    known = whole.others + objective.untouched
    exact = Eigenpair(whole.rest, 0.0, True, None if whole.rest else 0.0)
    reach = [found.lower - rounding, found.upper + rounding, *([whole.rest] if known else [])]
    result = HessianResult(
        top=_with_known(pairs[: found.top], exact, known, order, question.top),
        bottom=_with_known(pairs[found.top :], exact, known, "smallest", question.bottom),
        reach=Reach(min(reach), max(reach), 1.0 if whole.exact else question.probability),
        status=found.status,
        loss=objective.loss,
        gradient_norm=float(euclidean_norm(operator.gradient)),
        parameters=objective.dimension,
        untouched=objective.untouched,
        matrix=question.chosen.matrix,
        hvp_check=check,
        order=order,
        products=operator.strategy,
        micro_batch=operator.micro_batch,
        basis=operator.plan.capacity,
        restarts=found.restarts,
        copies_found=found.copies_found,
        method="gram" if whole.exact else "lanczos",
        preconditioner=question.preconditioner,
        sampled=sampled,
    )
    _findings(context, result, question.tol)
    return result, pairs


def _with_known(
    pairs: list[Eigenpair],
    exact: Eigenpair,
    known: int,
    order: Literal["value", "magnitude", "smallest"],
    asked: int,
) -> list[Eigenpair]:
    """The ``asked`` first of the pairs and of ``known`` eigenvalues that are all ``exact``."""
    if not known:
        return pairs
    keys = {
        "value": lambda p: -p.value,
        "magnitude": lambda p: -abs(p.value),
        "smallest": lambda p: p.value,
    }
    return sorted([*pairs, *[exact] * min(known, asked)], key=keys[order])[:asked]


def _expected(progress: "Progress", recheck: int) -> int:
    """A guess of the products a run will take, from how many pairs have converged so far."""
    first_guess = 2.2 * progress.wanted + 12
    ratio = progress.wanted / max(1, progress.converged)
    guess = max(first_guess, progress.matvecs * min(2.0, ratio**0.5))
    return int(guess) + recheck


def _findings(context: Context, result: HessianResult, tol: float) -> None:
    pairs = [*result.top, *result.bottom]
    open_ = sum(not p.converged for p in pairs)
    if open_ and result.status == "converged":
        context.find(
            "hessian.rounding",
            "warning",
            "top",
            f"{open_} of {len(pairs)} residuals stay above the tolerance because of rounding: "
            "use --dtype float64 or a larger --tol",
            value=max(p.residual for p in pairs if not p.converged),
            threshold=tol,
        )
    elif open_:
        context.incomplete = True
        reason = {
            "max_matvecs": "the budget of products ran out (raise --max-matvecs)",
            "timeout": "the time ran out (raise --timeout)",
            "interrupted": "it was interrupted",
        }[str(result.status)]
        context.find(
            "hessian.not-converged",
            "warning",
            "top",
            f"{open_} of {len(pairs)} eigenvalues have not converged: {reason}",
            value=float(open_),
            threshold=0.0,
        )


ANALYSIS = Analysis(hessian, view)
