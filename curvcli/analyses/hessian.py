"""`curvcli hessian`: the ends of the Hessian's spectrum, each eigenvalue with its error."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.analysis import Analysis
from curvcli.analyses.context import Context, Stage, parse_seconds
from curvcli.report.data import Block, Column, Facts, Measured, Number, Sentence, Table
from curvcli.report.numbers import number

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.linalg.lanczos import LanczosResult, LanczosState, Progress
    from curvcli.operators.hessian import Hessian

Status = Literal["converged", "max_matvecs", "timeout", "interrupted"]

# A product that differs more than this from the finite difference of the gradient is suspect. Smooth
# networks in float32 come to 1e-5 … 1e-3, kinks (ReLU) within a step to some percent.
CHECK_LIMIT = 0.1
CAPACITY = 200
# An error of the computed matrix above this share of ‖H‖ is said: the network amplifies rounding.
PRECISION_LIMIT = 1e-3


class Eigenpair(Struct, frozen=True):
    """An eigenvalue of the Hessian with its errors."""

    value: Annotated[float, Meta(description="Rayleigh quotient vᵀHv")]
    residual: Annotated[
        float, Meta(description="ρ: some eigenvalue lies within value ± ρ; ‖Hv − θv‖ and rounding")
    ]
    converged: Annotated[bool, Meta(description="ρ ≤ tol · max(|value|, 0.01 ‖H‖)")]
    batch_standard_error: Annotated[
        Number, Meta(description="of vᵀHv over the batches (a single batch is split)")
    ]


class Reach(Struct, frozen=True):
    """How far the spectrum can extend beyond what was seen."""

    lower: Annotated[float, Meta(description="no eigenvalue is smaller")]
    upper: Annotated[float, Meta(description="no eigenvalue is larger")]
    probability: Annotated[float, Meta(description="with which both hold")]


class HessianResult(Struct, frozen=True):
    """The ends of the spectrum of ∇²L(θ)."""

    top: Annotated[list[Eigenpair], Meta(description="largest first")]
    bottom: Annotated[list[Eigenpair], Meta(description="smallest first")]
    reach: Reach
    status: Annotated[Status, Meta(description="why the run ended")]
    loss: float
    gradient_norm: float
    parameters: Annotated[int, Meta(description="n, the dimension of the Hessian")]
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
    state: Annotated[
        str | None, "Save the run in this file, and go on from it if it exists."
    ] = None,
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
    return _answer(context, operator, run, found, tol, probability, order)


def _answer(
    context: Context,
    operator: "Hessian",
    run: "LanczosState",
    found: "LanczosResult",
    tol: float,
    probability: float,
    order: Literal["value", "magnitude"],
) -> HessianResult:
    import torch

    from curvcli.linalg.lanczos import ROUNDING

    objective = operator.objective
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
        pairs, rounding = certified_pairs(context, operator, found, tol)
        largest = max(range(len(pairs)), key=lambda i: abs(pairs[i].value))
        check = _check_products(context, operator, found.vectors_KN[largest])
    result = HessianResult(
        top=pairs[: found.top],
        bottom=pairs[found.top :],
        reach=Reach(found.lower - rounding, found.upper + rounding, probability),
        status=found.status,
        loss=objective.loss,
        gradient_norm=float(torch.linalg.vector_norm(operator.gradient)),
        parameters=operator.n,
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
    return result


def certified_pairs(
    context: Context, operator: "Hessian", found: "LanczosResult", tol: float
) -> tuple[list[Eigenpair], float]:
    """True residuals and the spread over batches, by one more product for each pair.

    Returns:
        The pairs, and the rounding of a product.
    """
    import torch

    from curvcli.linalg.certify import certify
    from curvcli.linalg.lanczos import SMALL
    from curvcli.operators.double import rounding_in_double

    vectors_KN = found.vectors_KN
    products_KN = torch.zeros_like(vectors_KN)
    weights, quotients = [], []
    for index, part in enumerate(operator.parts(vectors_KN)):
        context.progress(Stage("residuals", index, None))
        products_KN += part.products_KN
        share = part.weight / operator.objective.weight
        weights.append(share)
        quotients.append(torch.linalg.vecdot(vectors_KN, part.products_KN).double().cpu() / share)
    decay = operator.objective.weight_decay
    products_KN += decay * vectors_KN
    measured = rounding_in_double(operator, vectors_KN)
    if measured is None:
        context.notes.append(
            "rounding of products is estimated: they could not be repeated in float64"
        )
    elif measured > PRECISION_LIMIT * found.norm:
        context.find(
            "hessian.precision",
            "warning",
            "top",
            f"{_name(operator)} resolves this curvature only to {measured / found.norm:.1%}, as measured on "
            "some samples; others may be worse: use --dtype float64",
            value=measured / found.norm,
            threshold=PRECISION_LIMIT,
        )
    certificate = certify(vectors_KN, products_KN, found.norm, measured or 0.0)
    errors: list[float | None] = [None] * len(vectors_KN)
    b = len(quotients)
    if b > 1:
        share_B1 = torch.tensor(weights, dtype=torch.float64)[:, None]
        spread_BK = torch.stack(quotients) + decay - torch.from_numpy(certificate.values_K)
        errors = ((share_B1 * spread_BK).square().sum(0) * b / (b - 1)).sqrt().tolist()
    norm = max(found.norm, *(abs(v) for v in certificate.values_K.tolist()))
    return [
        Eigenpair(value, residual, residual <= tol * max(abs(value), SMALL * norm), error)
        for value, residual, error in zip(
            certificate.values_K.tolist(), certificate.residuals_K.tolist(), errors, strict=True
        )
    ], certificate.rounding


def _name(operator: "Hessian") -> str:
    return str(operator.dtype).removeprefix("torch.")


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


def _check_products(context: Context, operator: "Hessian", vector_N: "Tensor") -> float | None:
    """One product against finite differences; a large difference is attributed and reported."""
    from curvcli.operators.double import error_in_double

    check = operator.check(vector_N)
    if check is None:
        context.notes.append(
            f"no check by finite differences: {_name(operator)} cannot move the weights finely enough "
            "in so sharp a direction (--dtype float64 can)"
        )
    elif check > CHECK_LIMIT:
        cause = error_in_double(operator, vector_N)
        if cause is not None and cause <= CHECK_LIMIT:
            context.find(
                "hessian.kinks",
                "note",
                "hvp_check",
                f"a small step feels a curvature that differs by {check:.0%} from the second derivative: "
                "kinks (ReLU, max) lie near these weights; products themselves are right "
                f"({cause:.0e} in float64)",
                value=check,
                threshold=CHECK_LIMIT,
            )
        else:
            context.find(
                "hessian.products",
                "error",
                "hvp_check",
                f"products differ by {check:.0%} from finite differences of the gradient: the second "
                "derivative is wrong; look for a custom backward, .detach() or torch.no_grad()",
                value=check,
                threshold=CHECK_LIMIT,
            )
    return check


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
    return [facts, table, *_meaning(result)]


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
