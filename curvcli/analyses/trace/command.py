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
    """How much curvature there is in all, in how many directions, and in which tensors.

    Trace (the sum of all Hessian eigenvalues), Frobenius norm (the root of the sum of their squares) and effective
    dimension (how many directions the data decides), each with its standard error. Random vectors are drawn until the
    errors are small; the leading directions are exact.
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
    max_matvecs: Annotated[
        int,
        Meta(
            ge=2,
            description="Stop after so many products; each costs about two gradients.",
        ),
    ] = 2000
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None
    state: StateOption = None
    optimizer: OptimizerOption = None
    draws: DrawsOption = 1
    exact_rows: ExactOption = 256


_MEANING = (
    "The trace is the sum of all eigenvalues: the curvature in all. The effective dimension counts the "
    "directions that matter at a damping. The share of a tensor says where the curvature is."
)

QUESTION = Question(
    "trace",
    TraceOptions,
    TraceResult,
    view,
    headline,
    divides=("matrix=preconditioned",),
    wanted=lambda o: o.deflate,
    meaning=_MEANING,
)
