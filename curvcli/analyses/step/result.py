"""What `curvcli step` answers."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.report.data import Number


class MethodStep(Struct, frozen=True):
    """One step by one method."""

    name: str
    norm: Annotated[Number, Meta(description="‖Δθ‖")]
    predicted_change: Annotated[Number, Meta(description="gᵀΔ + ½ ΔᵀHΔ")]
    true_change: Annotated[Number, Meta(description="L(θ + Δ) − L(θ)")]
    true_change_residual: Annotated[Number, Meta(description="of that, by rounding")]
    matvecs: Annotated[int, Meta(description="products spent on finding the step")]
    gradients: Annotated[int, Meta(description="gradients spent on finding the step")]
    status: Annotated[str, Meta(description="how it was found")]
    residual: Annotated[
        Number, Meta(description="of the linear system, relative; null where none is solved")
    ]
    heads_for_saddle: Annotated[
        bool | None,
        Meta(description="climbs along known negative curvature; null where none is known"),
    ]


class StepResult(Struct, frozen=True):
    """One step by each method."""

    methods: list[MethodStep]
    loss: float
    gradient_norm: float
    negative_curvature: Annotated[
        Number, Meta(description="lowest Ritz value, where it is below zero")
    ]
    best: Annotated[str | None, Meta(description="the method whose step lowers the loss most")]
    as_good: Annotated[
        list[str], Meta(description="other methods whose change is the same to rounding")
    ]
    saved: Annotated[
        str | None, Meta(description="file with the stepped weights of the best method")
    ]
    parameters: int
    hvp_check: Annotated[
        Number,
        Meta(description="relative difference of one product to finite differences"),
    ] = None
