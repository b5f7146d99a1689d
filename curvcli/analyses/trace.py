"""`curvcli trace`: sums over the whole spectrum, and the diagonal, each with its standard error."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from curvcli.analyses.analysis import Analysis
from curvcli.analyses.context import Context, Stage, parse_seconds
from curvcli.analyses.matrices import (
    Chosen,
    DrawsOption,
    ExactOption,
    Matrix,
    MatrixOption,
    OptimizerOption,
)
from curvcli.analyses.trace_result import Estimate, Split, Status, TensorCurvature, TraceResult
from curvcli.analyses.trace_view import view

if TYPE_CHECKING:
    import torch

    from curvcli.linalg.operator import Float64Array
    from curvcli.linalg.spectral_sums import Probes, SpectralSum
    from curvcli.operators.curvature import Curvature

# Damping where none is given, relative to the largest eigenvalue.
_DAMPING = 1e-2


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
    plan = _Plan(tol, deflate, steps, probes, max_matvecs)
    generator = torch.Generator().manual_seed(context.spec.seed)
    sums, damping = _sums(context, operator, plan, damping, exact_rows, generator)
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


class _Plan(NamedTuple):
    tol: float
    deflate: int
    steps: int
    probes: int
    max_matvecs: int


class _Sums(NamedTuple):
    """What is known of the spectrum."""

    trace: "SpectralSum"
    squares: "SpectralSum"
    effective: "SpectralSum"
    participation: "SpectralSum"
    blocks: "list[SpectralSum]"
    probes: int
    steps: int
    deflated: int
    status: Status
    method: Literal["probes", "gram", "whole"]


def _sums(
    context: Context,
    operator: "Curvature[Any]",
    plan: _Plan,
    damping: float | None,
    rows: int,
    generator: "torch.Generator",
) -> tuple[_Sums, float]:
    from curvcli.operators.gauss_newton import GaussNewton
    from curvcli.operators.gram import gram_spectrum

    if rows and isinstance(operator, GaussNewton):
        gram = gram_spectrum(operator, rows)
        if gram is not None:
            context.notes.append(
                f"the whole spectrum was computed from the Gram matrix of {len(gram.values_R)} rows"
            )
            damping = _damping(operator, float(gram.values_R[0]), damping)
            diagonal_N = gram.diagonal()
            blocks = _exact(_block_sums(operator)(diagonal_N).tolist())
            return _all_known(gram.all_values(), damping, blocks, "gram"), damping
    return _estimated(context, operator, plan, damping, generator)


def _estimated(
    context: Context,
    operator: "Curvature[Any]",
    plan: _Plan,
    damping: float | None,
    generator: "torch.Generator",
) -> tuple[_Sums, float]:
    """By Krylov space and probes; the damping is fixed by a few products where it is not given."""
    import numpy as np

    from curvcli.linalg.quadrature import gauss_rule
    from curvcli.linalg.spectral_sums import Goal, estimate

    if damping is None and not operator.objective.weight_decay:
        largest = float(np.abs(gauss_rule(operator, _PILOT, generator).theta_M).max())
        damping = _damping(operator, largest, None)
    damping = _damping(operator, 0.0, damping)
    effective = partial(_effective, damping=damping, indefinite=_indefinite(operator))
    deflate = _deflated(operator, plan)
    steps = max(1, min(plan.steps, operator.plan.capacity // 2 - deflate))
    found, status = estimate(
        operator,
        deflate,
        Goal(plan.tol, (effective,), steps, plan.probes, plan.max_matvecs),
        generator,
        blocks=_block_sums(operator),
        stop=context.stop,
        progress=lambda done: context.progress(Stage("products", done, None)),
    )
    steps = max((len(r.nodes.theta_M) for r in found.rules), default=0)
    whole = found.exact.kept == operator.n
    return _Sums(
        found.trace(), found.square_sum(), found.sum_of(effective),
        found.participation_ratio(), found.block_traces(), len(found.forms), steps,
        found.exact.kept, status, "whole" if whole else "probes",
    ), damping  # fmt: skip


# Products that tell the scale of the spectrum.
_PILOT = 12


def _deflated(operator: "Curvature[Any]", plan: _Plan) -> int:
    """Krylov vectors to be exact on: all, where they are so few that probes would cost more."""
    capacity = operator.plan.capacity
    if operator.n <= min(capacity, plan.deflate + plan.steps):
        return operator.n
    return min(plan.deflate, capacity // 4)


def _damping(operator: "Curvature[Any]", largest: float, given: float | None) -> float:
    if given is not None:
        return given
    return operator.objective.weight_decay or _DAMPING * largest or 1.0


def _effective(x: "Float64Array", damping: float, indefinite: bool) -> "Float64Array":
    import numpy as np

    if indefinite:
        return np.square(x) / (np.square(x) + damping**2)
    positive = np.maximum(x, 0.0)  # below zero is rounding
    return positive / (positive + damping)


def _indefinite(operator: "Curvature[Any]") -> bool:
    from curvcli.operators.hessian import Hessian

    return isinstance(operator, Hessian)


def _block_sums(operator: "Curvature[Any]") -> "Callable[[torch.Tensor], torch.Tensor]":
    """Sums over the tensors of the parameters."""
    import torch

    lengths = operator.objective.sizes()

    def sums(v_N: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.double().sum() for part in v_N.split(lengths)])

    return sums


def _exact(values: "list[float]") -> "list[SpectralSum]":
    from curvcli.linalg.spectral_sums import SpectralSum

    return [SpectralSum(v, 0.0, 0) for v in values]


def _all_known(
    values: "Float64Array", damping: float, blocks: "list[SpectralSum]", method: Literal["gram"]
) -> _Sums:
    import numpy as np

    total, square = float(values.sum()), float(np.square(values).sum())
    effective = float(_effective(values, damping, indefinite=False).sum())
    ratio = total**2 / square if square else 0.0
    trace, squares, dimension, participation = _exact([total, square, effective, ratio])
    return _Sums(
        trace,
        squares,
        dimension,
        participation,
        blocks,
        0,
        0,
        len(values),
        "converged",
        method,
    )


def _result(operator: "Curvature[Any]", sums: _Sums, damping: float, matrix: Matrix) -> TraceResult:
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
    plan: _Plan,
    result: TraceResult,
    generator: "torch.Generator",
) -> TraceResult:
    """G and R = H − G, each by probes of its own."""
    import msgspec

    from curvcli.linalg.spectral_sums import Goal, estimate
    from curvcli.operators.difference import Difference
    from curvcli.operators.gauss_newton import GaussNewton

    gauss_newton = GaussNewton(operator.objective, memory=context.spec.memory_bytes)
    found: list[Probes] = []
    status = result.status
    for what, op in (
        ("Gauss-Newton", gauss_newton),
        ("residual", Difference(operator, gauss_newton)),
    ):
        probes, ended = estimate(
            op, _deflated(operator, plan), Goal(plan.tol, (), 1, plan.probes, plan.max_matvecs), generator,
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
