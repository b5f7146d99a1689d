"""Eigenvalues as they are shown."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.report.data import Number


class Eigenpair(Struct, frozen=True):
    """An eigenvalue of the Hessian with its errors."""

    value: Annotated[float, Meta(description="Rayleigh quotient vᵀHv")]
    residual: Annotated[
        float, Meta(description="ρ: some eigenvalue lies within value ± ρ; ‖Hv − θv‖ and rounding")
    ]
    converged: Annotated[bool, Meta(description="ρ ≤ tol · max(|value|, 0.01 ‖H‖)")]
    batch_standard_error: Annotated[
        Number, Meta(description="of vᵀHv over the batches (a single batch is split)")
    ]


class Reach(Struct, frozen=True):
    """How far the spectrum can extend beyond what was seen."""

    lower: Annotated[float, Meta(description="no eigenvalue is smaller")]
    upper: Annotated[float, Meta(description="no eigenvalue is larger")]
    probability: Annotated[float, Meta(description="with which both hold")]
