"""What `curvcli taylor` answers."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.spectrum.eigenpairs import Reach
from curvcli.report.data import Number


class Point(Struct, frozen=True):
    """The loss and its model at θ + tΔ."""

    t: float
    radius: Annotated[float, Meta(description="‖tΔ‖")]
    zeroth: Annotated[float, Meta(description="L(θ)")]
    first: Annotated[float, Meta(description="L + t gᵀΔ")]
    second: Annotated[float, Meta(description="L + t gᵀΔ + t²/2 ΔᵀHΔ")]
    true: Annotated[Number, Meta(description="L(θ + tΔ)")]
    error: Annotated[Number, Meta(description="|true − second| / (|t gᵀΔ| + |t²/2 ΔᵀHΔ|)")]


class BestStep(Struct, frozen=True):
    """Where the loss is lowest on the line."""

    t: float
    radius: float
    change: Annotated[float, Meta(description="L(θ + tΔ) − L(θ)")]
    model_t: Annotated[
        Number, Meta(description="where the model is lowest; null where it has no minimum")
    ]


class ThirdOrder(Struct, frozen=True):
    """∂³L/∂t³ at 0, from the misfit of the second-order model."""

    value: float
    standard_error: float


class Direction(Struct, frozen=True):
    """The model along one direction."""

    name: str
    norm: Annotated[
        float, Meta(description="‖Δ‖; 1 but for steps and the way to another checkpoint")
    ]
    slope: Annotated[float, Meta(description="gᵀΔ")]
    curvature: Annotated[float, Meta(description="ΔᵀHΔ")]
    points: list[Point]
    trust_radius: Annotated[
        float, Meta(description="‖tΔ‖ up to which the model is right to --trust")
    ]
    trusted_to_the_end: Annotated[
        bool, Meta(description="trust_radius is the farthest point looked at")
    ]
    curvature_share: Annotated[
        float, Meta(description="share of curvature in the predicted change at the trust radius")
    ]
    best_step: BestStep | None
    third_order: ThirdOrder | None


class TaylorResult(Struct, frozen=True):
    """The second-order Taylor model against the truth."""

    directions: list[Direction]
    critical_learning_rate: Annotated[
        Number,
        Meta(
            description="2/λ_max: gradient descent is unstable above; null without positive curvature"
        ),
    ]
    critical_learning_rate_interval: Annotated[
        tuple[float, float] | None,
        Meta(
            description="stable below the first, with the probability of the reach; unstable above the second. null: "
            "λ_max may be zero or less"
        ),
    ]
    lambda_max: float
    lambda_max_residual: float
    reach: Reach
    loss: float
    gradient_norm: float
    trust: float
    parameters: int
    hvp_check: Annotated[
        Number,
        Meta(description="relative difference of one product to finite differences"),
    ] = None
