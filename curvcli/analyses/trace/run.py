"""`curvcli trace`: sums over the whole spectrum, and the diagonal, each with its standard error."""

import math
from functools import partial
from typing import Any

import msgspec
import torch

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.checked import Checked, check_random_product
from curvcli.analyses.shared.spectrum.matrices import Chosen
from curvcli.analyses.shared.spectrum.matrix_options import Matrix
from curvcli.analyses.shared.spectrum.saved import run_log
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.trace.command import TraceOptions
from curvcli.analyses.trace.findings import NOT_CONVERGED
from curvcli.analyses.trace.result import Estimate, Split, TensorCurvature, TraceResult
from curvcli.analyses.trace.sums import SpectrumSums, SumPlan, deflated, spectrum_sums
from curvcli.errors import UsageError
from curvcli.linalg.run_log import RunLog
from curvcli.linalg.stochastic.spectral_sums import OF_NORM, Goal, Probes, SpectralSum, estimate
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.difference import Difference
from curvcli.operators.curvature.gauss_newton import GaussNewton


def run(subject: Subject, options: TraceOptions, journal: Journal) -> Answer[TraceResult]:
    """Answer `curvcli trace`; see `TraceOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    if options.split and options.matrix != "hessian":
        raise UsageError("--split is of the Hessian", "leave out --matrix")
    journal.progress(Stage("loading", 0, None))
    objective = subject.objective
    plan = SumPlan(options.tol, options.deflate, options.steps, options.probes, options.max_matvecs)
    chosen = Chosen(options.matrix, options.draws, options.optimizer)
    operator, made = chosen.operator(
        subject,
        journal,
        wanted=options.deflate,
        preferred_capacity=max(2 * (options.deflate + options.steps), plan.expected),
    )
    generator = torch.Generator().manual_seed(subject.spec.seed)
    key = f"trace {subject.fingerprint()} {chosen} {made}" if options.state else ""
    with run_log(options.state, key, journal, operator.ranks) as log:
        sums, damping = spectrum_sums(
            journal, operator, plan, options.damping, options.exact_rows, generator, log
        )
        check, error = check_random_product(journal, operator, subject.spec.seed)
        result = _result(operator, sums.rounded(error), damping, options.matrix, check)
        if options.split:
            result = _with_split(subject, journal, operator, plan, result, generator, log)
    if result.status != "converged":
        journal.cut_short()
        journal.find(
            NOT_CONVERGED, "trace",
            "the standard errors are above the tolerance: "
            + ("raise --max-matvecs" if result.status == "max_matvecs" else "it ended early"),
            value=result.trace.standard_error,
            threshold=options.tol * max(abs(result.trace.value), OF_NORM * result.frobenius.value),
        )  # fmt: skip
    if objective.untouched:
        journal.note("parameters that no sample looks up count as eigenvalues that are zero")
    return journal.answer(result)


def _result(
    operator: Curvature[Any], sums: SpectrumSums, damping: float, matrix: Matrix, check: Checked
) -> TraceResult:
    objective = operator.objective
    n = objective.dimension
    tensors = [
        TensorCurvature(held.name, count, _shown(block), _shown(block, 1 / count))
        for held, block in zip(objective.tensors, sums.blocks, strict=True)
        for count in [held.shape.numel()]
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
        hvp_check=check.difference,
    )


def _shown(found: SpectralSum, factor: float = 1.0) -> Estimate:
    return Estimate(found.value * factor, _known(found.standard_error * factor), found.degrees)


def _root(squares: SpectralSum) -> Estimate:
    """The root of a sum of squares; its error by the derivative."""
    value = max(0.0, squares.value) ** 0.5
    error = squares.standard_error / (2 * value) if value else squares.standard_error
    return Estimate(value, _known(error), squares.degrees)


def _known(error: float) -> float | None:
    """The error, or None where too few probes were made to tell it."""
    return None if math.isnan(error) else error


def _with_split(
    subject: Subject,
    journal: Journal,
    operator: Curvature[Any],
    plan: SumPlan,
    result: TraceResult,
    generator: torch.Generator,
    log: RunLog,
) -> TraceResult:
    """G and R = H − G, each by probes of its own."""
    gauss_newton = GaussNewton(operator.objective, memory=subject.spec.memory_bytes)
    found: list[Probes] = []
    status = result.status
    for what, op in (
        ("Gauss-Newton", gauss_newton),
        ("residual", Difference(operator, gauss_newton)),
    ):
        probes, ended = estimate(
            op, deflated(operator, plan), Goal(plan.tol, (), 1, plan.probes, plan.max_matvecs), generator,
            stop=journal.stop,
            progress=partial(_tell, journal, what),
            log=log,
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


def _tell(journal: Journal, what: str, done: int) -> None:
    journal.progress(Stage(what, done, None))
