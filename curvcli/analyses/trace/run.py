"""`curvcli trace`: sums over the whole spectrum, and the diagonal, each with its standard error."""

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, Stage, parse_seconds
from curvcli.analyses.shared.matrices import (
    Chosen,
    DrawsOption,
    ExactOption,
    Matrix,
    MatrixOption,
    OptimizerOption,
)
from curvcli.analyses.trace.result import Estimate, Split, TensorCurvature, TraceResult
from curvcli.analyses.trace.sums import SpectrumSums, SumPlan, deflated, spectrum_sums
from curvcli.analyses.trace.view import view

if TYPE_CHECKING:
    import torch

    from curvcli.linalg.stochastic.spectral_sums import Probes, SpectralSum
    from curvcli.operators.curvature.curvature import Curvature


def trace(
    context: Context,
    *,
    matrix: MatrixOption = "hessian",
    tol: Annotated[
        float,
        Meta(
            gt=0,
            description="Stop when standard errors are below tol · value (5 tol for the effective dimension).",
        ),
    ] = 0.02,
    damping: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="For the effective dimension; default: the weight decay, or 1e-2 · the largest |λ|."
        ),
    ] = None,
    split: Annotated[
        bool,
        "Split the Hessian into Gauss-Newton and residual curvature; takes three times the products.",
    ] = False,
    deflate: Annotated[
        int, Meta(ge=1, description="Krylov vectors on which the sums are exact.")
    ] = 16,
    steps: Annotated[
        int,
        Meta(
            ge=8,
            description="Products of a random vector for the effective dimension, at most.",
        ),
    ] = 40,
    probes: Annotated[int, Meta(ge=2, description="Random vectors at least.")] = 10,
    max_matvecs: Annotated[int, Meta(ge=2, description="End after so many products.")] = 2000,
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None,
    optimizer: OptimizerOption = None,
    draws: DrawsOption = 1,
    exact_rows: ExactOption = 256,
) -> TraceResult:
    """Trace, Frobenius norm, effective dimension and diagonal of the Hessian, with standard errors.

    The sums are exact on a Krylov space, which holds the leading eigenvectors, and estimated with random vectors on the
    rest, until the standard errors are small. Where the trace is smaller than the Frobenius norm, its tolerance is
    that of the norm. Intervals of 95 % are Student's.

    Args:
        context: the target.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    import torch

    from curvcli.errors import UsageError

    if split and matrix != "hessian":
        raise UsageError("--split is of the Hessian", "leave out --matrix")
    context.limit_time(parse_seconds(timeout))
    context.progress(Stage("loading", 0, None))
    objective = context.objective
    operator, _ = Chosen(matrix, draws, optimizer).operator(
        context, wanted=deflate, preferred_capacity=2 * (deflate + steps)
    )
    plan = SumPlan(tol, deflate, steps, probes, max_matvecs)
    generator = torch.Generator().manual_seed(context.spec.seed)
    sums, damping = spectrum_sums(context, operator, plan, damping, exact_rows, generator)
    result = _result(operator, sums, damping, matrix)
    if split:
        result = _with_split(context, operator, plan, result, generator)
    if result.status != "converged":
        context.incomplete = True
        context.find(
            "trace.not-converged", "warning", "trace",
            "the standard errors are above the tolerance: "
            + ("raise --max-matvecs" if result.status == "max_matvecs" else "it ended early"),
            value=result.trace.standard_error,
            threshold=tol * max(abs(result.trace.value), result.frobenius.value),
        )  # fmt: skip
    if objective.untouched:
        context.notes.append(
            "parameters that no sample looks up count as eigenvalues that are zero"
        )
    return result


def _result(
    operator: "Curvature[Any]", sums: SpectrumSums, damping: float, matrix: Matrix
) -> TraceResult:
    objective = operator.objective
    n = objective.dimension
    tensors = [
        TensorCurvature(name, p.numel(), _shown(block), _shown(block, 1 / p.numel()))
        for name, p, block in zip(objective.names, objective.parameters, sums.blocks, strict=True)
    ]
    return TraceResult(
        matrix=matrix,
        trace=_shown(sums.trace),
        frobenius=_root(sums.squares),
        effective_dimension=_shown(sums.effective),
        damping=damping,
        participation_ratio=_shown(sums.participation),
        mean_eigenvalue=_shown(sums.trace, 1 / n),
        parameters=n,
        probes=sums.probes,
        steps=sums.steps,
        deflated=sums.deflated,
        status=sums.status,
        method=sums.method,
        tensors=tensors,
    )


def _shown(found: "SpectralSum", factor: float = 1.0) -> Estimate:
    return Estimate(found.value * factor, _known(found.standard_error * factor), found.degrees)


def _root(squares: "SpectralSum") -> Estimate:
    """The root of a sum of squares; its error by the derivative."""
    value = max(0.0, squares.value) ** 0.5
    error = squares.standard_error / (2 * value) if value else squares.standard_error
    return Estimate(value, _known(error), squares.degrees)


def _known(error: float) -> float | None:
    """The error, or None where too few probes were made to tell it."""
    return None if math.isnan(error) else error


def _with_split(
    context: Context,
    operator: "Curvature[Any]",
    plan: SumPlan,
    result: TraceResult,
    generator: "torch.Generator",
) -> TraceResult:
    """G and R = H − G, each by probes of its own."""
    import msgspec

    from curvcli.linalg.stochastic.spectral_sums import Goal, estimate
    from curvcli.operators.curvature.difference import Difference
    from curvcli.operators.curvature.gauss_newton import GaussNewton

    gauss_newton = GaussNewton(operator.objective, memory=context.spec.memory_bytes)
    found: list[Probes] = []
    status = result.status
    for what, op in (
        ("Gauss-Newton", gauss_newton),
        ("residual", Difference(operator, gauss_newton)),
    ):
        probes, ended = estimate(
            op, deflated(operator, plan), Goal(plan.tol, (), 1, plan.probes, plan.max_matvecs), generator,
            stop=context.stop,
            progress=partial(_tell, context, what),
        )  # fmt: skip
        found.append(probes)
        status = ended if status == "converged" else status
    squares = found[1].square_sum()
    whole, whole_error = (
        result.frobenius.value**2,
        2 * result.frobenius.value * (result.frobenius.standard_error or 0.0),
    )
    share = squares.value / whole if whole else 0.0
    # Two independent estimates: relative errors add in squares.
    relative = [
        squares.standard_error / squares.value if squares.value else 0.0,
        whole_error / whole if whole else 0.0,
    ]
    error = share * (relative[0] ** 2 + relative[1] ** 2) ** 0.5
    degrees = [d for d in (squares.degrees, result.frobenius.degrees_of_freedom) if d]
    return msgspec.structs.replace(
        result,
        status=status,
        split=Split(
            _shown(found[0].trace()),
            _shown(found[1].trace()),
            _root(squares),
            Estimate(share, error, min(degrees, default=0)),
        ),
    )


def _tell(context: Context, what: str, done: int) -> None:
    context.progress(Stage(what, done, None))


ANALYSIS = Analysis(trace, view)
