"""`curvcli hessian`: the ends of the Hessian's spectrum, each eigenvalue with its error."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from curvcli.analyses.analysis import Analysis
from curvcli.analyses.context import Context, Stage, parse_seconds
from curvcli.analyses.eigenpairs import Eigenpair, Reach, certified_pairs, check_products
from curvcli.analyses.hessian_layers import PerLayer
from curvcli.analyses.layer_run import look_at_layers
from curvcli.analyses.layer_view import layer_blocks
from curvcli.report.data import Block, Column, Facts, Measured, Number, Sentence, Table
from curvcli.report.numbers import number

if TYPE_CHECKING:
    from curvcli.linalg.lanczos import LanczosResult, LanczosState, Progress
    from curvcli.operators.hessian import Hessian

Status = Literal["converged", "max_matvecs", "timeout", "interrupted"]

CAPACITY = 200


class HessianResult(Struct, frozen=True):
    """The ends of the spectrum of ∇²L(θ)."""

    top: Annotated[list[Eigenpair], Meta(description="largest first")]
    bottom: Annotated[list[Eigenpair], Meta(description="smallest first")]
    reach: Reach
    status: Annotated[Status, Meta(description="why the run ended")]
    loss: float
    gradient_norm: float
    parameters: Annotated[int, Meta(description="n, the dimension of the Hessian")]
    untouched: Annotated[
        int,
        Meta(
            description="of these, entries of embeddings that no sample looks up: exactly zero rows of H"
        ),
    ]
    matrix: Literal["hessian"]
    hvp_check: Annotated[
        Number,
        Meta(
            description="relative difference of one product to the finite difference of gradients"
        ),
    ]
    order: Annotated[
        Literal["value", "magnitude"],
        Meta(description="whether top means largest λ or largest |λ|"),
    ]
    products: Annotated[
        Literal["keep", "rebuild", "finite-difference"],
        Meta(description="how products were computed"),
    ]
    micro_batch: Annotated[int | None, Meta(description="samples at a time; null: whole batches")]
    basis: Annotated[int, Meta(description="Krylov vectors that could be held")]
    restarts: int
    copies_found: Annotated[
        int, Meta(description="eigenvalues that only the look for copies found")
    ]
    per_layer: Annotated[
        PerLayer | None, Meta(description="null: not asked for, or not begun in time")
    ] = None


def hessian(
    context: Context,
    *,
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

    Thick-restart Lanczos on products with the Hessian of the loss at the checkpoint's weights. Every
    eigenvalue comes with a residual: some eigenvalue of the Hessian lies within value ± residual. The
    reach says how far the spectrum can extend beyond what was seen, with its probability.

    Args:
        context: the target.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    from curvcli.errors import UsageError
    from curvcli.linalg.lanczos import Wanted, lanczos, start
    from curvcli.linalg.state import load_state, save_state
    from curvcli.operators.hessian import Hessian

    if top + bottom == 0:
        raise UsageError("no eigenvalue is asked for", "pass --top or --bottom")
    if per_layer and per_block:
        raise UsageError("--per-layer and --per-block were both asked for", "choose one of them")
    context.limit_time(parse_seconds(timeout))
    context.progress(Stage("loading", 0, None))
    objective = context.objective
    context.progress(Stage("planning", 0, None))
    wanted = Wanted(min(top, objective.n), min(bottom, objective.n), order)
    operator = Hessian(
        objective,
        memory=context.spec.memory_bytes,
        wanted=wanted.count,
        preferred_capacity=CAPACITY,
    )
    fingerprint = context.fingerprint() if state else ""
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
        from curvcli.operators.layer_spectra import leading

        known = leading(run)
    result, pairs = _answer(
        context, operator, run, found, tol, probability, order, spread, (top, bottom)
    )
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


def _answer(
    context: Context,
    operator: "Hessian",
    run: "LanczosState",
    found: "LanczosResult",
    tol: float,
    probability: float,
    order: Literal["value", "magnitude"],
    spread: int,
    asked: tuple[int, int],
) -> tuple[HessianResult, list[Eigenpair]]:
    """The answer, and the pairs without exact zeros, as they belong to the vectors of ``found``."""
    import torch

    from curvcli.linalg.lanczos import ROUNDING
    from curvcli.linalg.vectors import euclidean_norm

    objective = operator.objective
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
        run.basis.drop()
        certified = certified_pairs(context, operator, found, tol, spread)
        pairs, rounding = certified.pairs, certified.rounding
        check = check_products(context, operator, certified.vector_N, certified.product_N)
    zeros = objective.untouched
    reach = [found.lower - rounding, found.upper + rounding, *([0.0] if zeros else [])]
    result = HessianResult(
        top=_with_zeros(pairs[: found.top], zeros, order, asked[0]),
        bottom=_with_zeros(pairs[found.top :], zeros, "smallest", asked[1]),
        reach=Reach(min(reach), max(reach), probability),
        status=found.status,
        loss=objective.loss,
        gradient_norm=float(euclidean_norm(operator.gradient)),
        parameters=objective.dimension,
        untouched=objective.untouched,
        matrix="hessian",
        hvp_check=check,
        order=order,
        products=operator.strategy,
        micro_batch=operator.micro_batch,
        basis=operator.plan.capacity,
        restarts=found.restarts,
        copies_found=found.copies_found,
    )
    _findings(context, result, tol)
    return result, pairs


def _with_zeros(
    pairs: list[Eigenpair],
    zeros: int,
    order: Literal["value", "magnitude", "smallest"],
    asked: int,
) -> list[Eigenpair]:
    """The ``asked`` first of the pairs and of ``zeros`` eigenvalues that are exactly zero."""
    if not zeros:
        return pairs
    keys = {
        "value": lambda p: -p.value,
        "magnitude": lambda p: -abs(p.value),
        "smallest": lambda p: p.value,
    }
    exact = [Eigenpair(0.0, 0.0, True, 0.0)] * min(zeros, asked)
    return sorted([*pairs, *exact], key=keys[order])[:asked]


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


def view(result: HessianResult) -> list[Block]:
    """The pairs as a table, the reach, and what they mean."""
    rows = [
        (f"{'top' if i < len(result.top) else 'bottom'}", Measured(p.value, p.residual), p.converged,
         p.batch_standard_error)
        for i, p in enumerate([*result.top, *result.bottom])
    ]  # fmt: skip
    reach = result.reach
    facts = Facts(
        [
            ("loss", result.loss),
            ("gradient norm", result.gradient_norm),
            ("parameters", result.parameters),
            (
                "reach",
                f"[{number(reach.lower)}, {number(reach.upper)}] with probability {reach.probability:g}",
            ),
            ("status", result.status.replace("_", " ")),
            (
                "product check",
                None
                if result.hvp_check is None
                else f"{result.hvp_check:.1e} relative to finite differences",
            ),
        ]
    )
    table = Table(
        "Hessian eigenvalues",
        (
            Column("end", numeric=False),
            Column("λ ± residual"),
            Column("converged", numeric=False),
            Column("batch s.e."),
        ),
        rows,
        "Some eigenvalue lies within each λ ± residual. batch s.e.: how much λ varies with the data.",
    )
    return [facts, table, *layer_blocks(result.per_layer), *_meaning(result)]


def _meaning(result: HessianResult) -> list[Block]:
    sentences: list[Block] = []
    if result.top and result.top[0].value > 0 and result.order == "value":
        sharpest = result.top[0]
        sentences.append(
            Sentence(
                f"Sharpest direction: λ = {number(sharpest.value)}; gradient descent is stable there for "
                f"learning rates below 2/λ = {number(2 / sharpest.value, 3)}."
            )
        )
    lowest = min((p for p in [*result.top, *result.bottom]), key=lambda p: p.value)
    if lowest.value + lowest.residual < 0:
        sentences.append(
            Sentence(
                f"There is negative curvature: an eigenvalue of at most {number(lowest.value + lowest.residual)}. "
                "The surface is not convex here.",
                "plain",
            )
        )
    elif result.reach.lower >= 0:
        sentences.append(
            Sentence(
                f"No negative curvature, with probability {result.reach.probability:g}.", "good"
            )
        )
    else:
        sentences.append(
            Sentence(
                "No negative curvature was found; if there is any, it is above "
                f"{number(result.reach.lower)} with probability {result.reach.probability:g}."
            )
        )
    return sentences


ANALYSIS = Analysis(hessian, view)
