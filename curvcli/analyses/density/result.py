"""What `curvcli density` answers."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.shared.spectrum.matrix_options import Matrix
from curvcli.report.data import Number

Status = Literal["converged", "max_matvecs", "timeout", "interrupted"]


class Outlier(Struct, frozen=True):
    """An eigenvalue that stands apart from the rest of the spectrum."""

    value: float
    residual: Annotated[float, Meta(description="some eigenvalue lies within value ± residual")]


class Share(Struct, frozen=True):
    """A share of all eigenvalues."""

    value: float
    standard_error: Annotated[Number, Meta(description="over the probes")]
    degrees_of_freedom: int
    interval: Annotated[
        tuple[float, float],
        Meta(
            description="what every measure with the moments of the probes has (Chebyshev, Markov and Stieltjes), "
            "widened by 95 % of the sampling error: a Gauss rule tells no more"
        ),
    ]


class Moment(Struct, frozen=True):
    """Σ λ^order / n."""

    order: int
    value: float
    standard_error: Number
    degrees_of_freedom: int


class LogAxis(Struct, frozen=True):
    """The bulk over |λ|, as mass per decade, apart for both signs."""

    grid: list[float]
    positive: list[float]
    positive_standard_error: list[float]
    negative: list[float]
    negative_standard_error: list[float]


class DensityResult(Struct, frozen=True):
    """The spectral density of a curvature matrix."""

    matrix: Matrix
    grid: Annotated[list[float], Meta(description="λ, over the bulk: outliers are listed apart")]
    density: Annotated[list[float], Meta(description="of the bulk: mass per unit of λ")]
    standard_error: list[float]
    kernel_width: Annotated[
        float,
        Meta(description="median; the mass of each node is spread between its neighbours"),
    ]
    log_axis: LogAxis
    moments: list[Moment]
    mass_at_zero: Annotated[Share, Meta(description="|λ| ≤ zero")]
    mass_below_zero: Annotated[Share, Meta(description="λ < −zero")]
    zero: Annotated[float, Meta(description="eigenvalues up to this magnitude count as zero")]
    outliers: Annotated[list[Outlier], Meta(description="largest first; certified")]
    more_outliers: Annotated[
        bool, Meta(description="whether the list may go on: all that were asked for stand apart")
    ]
    wasserstein: Annotated[
        Number,
        Meta(
            description="error of the bulk: mean distance of a probe from all, over √(probes − 1)"
        ),
    ]
    scale: Annotated[float, Meta(description="mean |λ| of the bulk, which the tolerance is of")]
    parameters: Annotated[int, Meta(description="n, the dimension of the matrix")]
    probes: int
    steps: Annotated[int, Meta(description="Lanczos steps of a probe")]
    status: Annotated[Status, Meta(description="why the run ended")]
    method: Annotated[
        Literal["probes", "gram", "whole"],
        Meta(
            description="whole: all eigenvalues by n products; gram: all from the rows' Gram matrix"
        ),
    ]
    hvp_check: Annotated[
        Number,
        Meta(description="relative difference of one product to finite differences"),
    ] = None
