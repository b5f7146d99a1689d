"""What `curvcli saddle` answers."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.spectrum.eigenpairs import Reach
from curvcli.analyses.shared.verdict import Region, Verdict
from curvcli.report.data import Number


class Extreme(Struct, frozen=True):
    """An end of the spectrum as far as seen."""

    value: Annotated[float, Meta(description="Rayleigh quotient of the extreme Ritz vector")]
    residual: Annotated[float, Meta(description="some eigenvalue lies within value ± residual")]


class Share(Struct, frozen=True):
    """How much of a direction lies in one parameter."""

    name: str
    share: Annotated[float, Meta(description="of the squared norm")]


class WalkPoint(Struct, frozen=True):
    """The loss at a distance along ± the escape direction."""

    radius: Annotated[float, Meta(description="distance from the weights, signed")]
    change: Annotated[Number, Meta(description="L(θ + radius · v) − L(θ)")]
    predicted: Annotated[float, Meta(description="by the second-order Taylor model")]


class Escape(Struct, frozen=True):
    """The direction of lowest curvature and the loss along it."""

    curvature: float
    shares: Annotated[list[Share], Meta(description="parameters with most of it, largest first")]
    walk: list[WalkPoint]
    falls: Annotated[
        bool, Meta(description="whether the loss falls along it by more than rounding")
    ]


class IndexEstimate(Struct, frozen=True):
    """Number of eigenvalues below a floor, by stochastic Lanczos quadrature."""

    below: Annotated[float, Meta(description="eigenvalues smaller than this are counted")]
    value: float
    standard_error: Number
    probes: int


class SaddleResult(Struct, frozen=True):
    """Where the weights are on the loss surface."""

    verdict: Verdict
    probability: Annotated[
        float, Meta(description="with which verdicts that rest on the reach hold")
    ]
    stationarity: Annotated[
        Number,
        Meta(
            description="ρ = ‖g‖² / (2 ‖H‖ (L − L*)): at most 1 where no curvature on the way down exceeds "
            "‖H‖; above 1: it does, or L* is higher"
        ),
    ]
    gradient_norm: float
    gradient_noise: Annotated[
        Number, Meta(description="sampling error of the gradient, √(tr Σ / W)")
    ]
    lambda_min: Extreme
    lambda_max: Extreme
    reach: Reach
    index_at_least: Annotated[int, Meta(description="negative eigenvalues that are proven")]
    escape: Escape | None
    region: Annotated[Region, Meta(description="how the surface bends around the weights")]
    loss: float
    floor: Annotated[float, Meta(description="curvature below this is rounding of the products")]
    parameters: int
    more_products: Annotated[
        int | None, Meta(description="a guess of how many more products would settle the verdict")
    ]
    index: IndexEstimate | None
    newton_promise: Annotated[
        Number,
        Meta(
            description="½ gᵀ(H₊ + εI)⁻¹g / (L − L*): share of the loss that a Newton step promises, at most; "
            "a minimum leaves 0.01. null: no minimum is in question"
        ),
    ] = None
    hvp_check: Annotated[
        Number,
        Meta(description="relative difference of one product to finite differences of gradients"),
    ] = None
    stationarity_interval: Annotated[
        tuple[float, float] | None,
        Meta(
            description="where ρ lies, as far as ‖H‖ is known: between what was seen and the reach"
        ),
    ] = None
