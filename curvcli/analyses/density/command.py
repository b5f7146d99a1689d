"""The options of `curvcli density`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.density.headline import headline
from curvcli.analyses.density.result import (
    DensityResult,
)
from curvcli.analyses.density.view import view
from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.spectrum.matrix_options import (
    DrawsOption,
    ExactOption,
    MatrixOption,
    OptimizerOption,
    StateOption,
)


class DensityOptions(Struct, frozen=True, kw_only=True):
    """How all Hessian eigenvalues are spread: how many are flat, negative, or stand apart.

    The spectral density by stochastic Lanczos quadrature, with as many random vectors as it takes for them to agree;
    the band is its error. Eigenvalues that stand apart are found one by one. -o density.png draws it.
    """

    matrix: MatrixOption = "hessian"
    tol: Annotated[
        float,
        Meta(
            gt=0, description="Stop when the Wasserstein error is below tol · mean |λ| of the bulk."
        ),
    ] = 0.05
    steps: Annotated[int, Meta(ge=4, description="Lanczos steps of each probe.")] = 80
    probes: Annotated[int, Meta(ge=2, description="Random vectors at least.")] = 5
    max_probes: Annotated[int, Meta(ge=2, description="Random vectors at most.")] = 30
    outliers: Annotated[
        int, Meta(ge=0, description="Leading eigenvalues to certify, of either end together.")
    ] = 13
    zero: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Eigenvalues up to this magnitude count as zero; default: 1e-4 ‖A‖."),
    ] = None
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None
    state: StateOption = None
    optimizer: OptimizerOption = None
    draws: DrawsOption = 1
    exact_rows: ExactOption = 256


_MEANING = (
    "How the eigenvalues are spread: a bulk around zero, in which the loss hardly bends, and outliers, "
    "which few directions make. Mass below zero is curvature in which the loss falls."
)

QUESTION = Question(
    "density",
    DensityOptions,
    DensityResult,
    view,
    headline,
    divides=("matrix=preconditioned",),
    wanted=lambda o: o.outliers,
    meaning=_MEANING,
)
