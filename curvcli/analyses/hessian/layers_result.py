"""What the curvature of single layers is, beside that of the whole: the types of the answer to ``--per-layer``."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.shared.spectrum.eigenpairs import Reach
from curvcli.report.data import Number


class Extreme(Struct, frozen=True):
    """An eigenvalue at an end of a block's spectrum."""

    value: Annotated[float, Meta(description="Rayleigh quotient")]
    residual: Annotated[
        float, Meta(description="some eigenvalue of the block lies within value ± residual")
    ]
    converged: bool


class Sampled(Struct, frozen=True):
    """A mean over random vectors."""

    value: Number
    standard_error: Annotated[
        Number,
        Meta(
            description="0: computed exactly; a 95 % interval takes the quantile of t with probes − 1 degrees"
        ),
    ]


class Bounded(Struct, frozen=True):
    """A number with a bound on its error."""

    value: Number
    residual: Annotated[Number, Meta(description="null: eigenvalues too close to tell")]


class PerParameter(Struct, frozen=True):
    """Divided by the number of parameters of the block."""

    lambda_max: Bounded
    lambda_min: Bounded
    trace: Annotated[Sampled, Meta(description="the mean eigenvalue")]


class LayerCurvature(Struct, frozen=True):
    """The diagonal block H_ll of one layer."""

    name: str
    parameters: int
    lambda_max: Extreme
    lambda_min: Extreme
    reach: Reach
    trace: Sampled
    frobenius: Annotated[Sampled, Meta(description="‖H_ll‖_F")]
    per_parameter: PerParameter
    shares: Annotated[
        list[float],
        Meta(
            description="‖v_l‖² of each eigenvector v of the whole that was found, top ones first"
        ),
    ]
    shares_residual: Annotated[
        list[Number],
        Meta(
            description="bound on their errors, residual / gap to the next eigenvalue seen; null: not separated"
        ),
    ]
    density: Annotated[
        list[float] | None, Meta(description="spectral density over the grid; its integral is 1")
    ] = None
    density_standard_error: list[Number] | None = None


class Distances(Struct, frozen=True):
    """Jensen-Shannon distances between the densities of the layers: 0 for equal ones, 1 for disjoint ones."""

    mean: Annotated[Sampled, Meta(description="over all pairs of layers")]
    largest: Sampled
    pair: Annotated[tuple[str, str], Meta(description="the two layers of the largest")]
    resolution: Annotated[
        float, Meta(description="standard deviation of the Gaussian that smooths the densities")
    ]
    probes: int
    steps: Annotated[int, Meta(description="Lanczos steps for each probe")]


class Overlap(Struct, frozen=True):
    """How much of the gradient lies in the span of the leading eigenvectors."""

    value: Annotated[Number, Meta(description="‖Vᵀg‖² / ‖g‖², V the top ones")]
    residual: Annotated[Number, Meta(description="null: the space is not separated from the rest")]
    vectors: int


class PerLayer(Struct, frozen=True):
    """The curvature of every layer or block, and how they stand to each other."""

    by: Literal["layer", "block"]
    layers: Annotated[list[LayerCurvature], Meta(description="in execution order")]
    diagonal_share: Annotated[
        Sampled, Meta(description="Σ ‖H_ll‖_F² / ‖H‖_F²: 1 where layers do not interact")
    ]
    gradient_overlap: Overlap
    heterogeneity: Annotated[
        Distances | None, Meta(description="null: no densities were asked for, or a single layer")
    ]
    grid: Annotated[list[float] | None, Meta(description="eigenvalues of the densities")]
    probes: Annotated[int, Meta(description="products for each trace and norm")]
    products: Annotated[
        int, Meta(description="steps of all layers together, whole products included")
    ]
