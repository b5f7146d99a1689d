"""The options of `curvcli trace`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.spectrum.matrix_options import (
    DrawsOption,
    ExactOption,
    MatrixOption,
    OptimizerOption,
    StateOption,
)
from curvcli.analyses.trace.headline import headline
from curvcli.analyses.trace.result import TraceResult
from curvcli.analyses.trace.view import view


class TraceOptions(Struct, frozen=True, kw_only=True):
    """Trace, Frobenius norm, effective dimension and diagonal of the Hessian, with standard errors.

    The sums are exact on a Krylov space, which holds the leading eigenvectors, and estimated with random vectors on the
    rest, until the standard errors are small. Where the trace is small beside the Frobenius norm, its tolerance is
    2.5 times that of the norm. Intervals of 95 % are Student's.
    """

    matrix: MatrixOption = "hessian"
    tol: Annotated[
        float,
        Meta(
            gt=0,
            description="Stop when standard errors are below tol · value (5 tol for the effective dimension).",
        ),
    ] = 0.02
    damping: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="For the effective dimension; default: the weight decay, or 1e-2 · the largest |λ|."
        ),
    ] = None
    split: Annotated[
        bool,
        "Split the Hessian into Gauss-Newton and residual curvature; takes three times the products.",
    ] = False
    deflate: Annotated[
        int, Meta(ge=1, description="Krylov vectors on which the sums are exact.")
    ] = 16
    steps: Annotated[
        int,
        Meta(
            ge=8,
            description="Products of a random vector for the effective dimension, at most.",
        ),
    ] = 100
    probes: Annotated[int, Meta(ge=2, description="Random vectors at least.")] = 10
    max_matvecs: Annotated[int, Meta(ge=2, description="End after so many products.")] = 2000
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None
    state: StateOption = None
    optimizer: OptimizerOption = None
    draws: DrawsOption = 1
    exact_rows: ExactOption = 256


QUESTION = Question("trace", TraceOptions, TraceResult, view, headline)
