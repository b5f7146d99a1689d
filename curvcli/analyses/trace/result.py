"""What `curvcli trace` answers."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.shared.spectrum.matrix_options import Matrix
from curvcli.report.data import Number

Status = Literal["converged", "max_matvecs", "timeout", "interrupted"]


class Estimate(Struct, frozen=True):
    """A sum over the spectrum."""

    value: float
    standard_error: Annotated[Number, Meta(description="of sampling, and rounding")]
    degrees_of_freedom: Annotated[
        int,
        Meta(
            description="of Student's t, for intervals: value ± t · standard_error; 0: nothing is sampled, and the "
            "error is rounding"
        ),
    ]


class TensorCurvature(Struct, frozen=True):
    """The diagonal of the matrix over one tensor of parameters."""

    name: str
    parameters: int
    trace: Estimate
    mean_diagonal: Annotated[Estimate, Meta(description="trace / parameters")]


class Split(Struct, frozen=True):
    """∇²L = G + R: the Gauss-Newton matrix and the curvature of the network itself, weighted with residuals."""

    gauss_newton_trace: Estimate
    residual_trace: Estimate
    residual_frobenius: Estimate
    residual_share: Annotated[Estimate, Meta(description="‖R‖_F² / ‖∇²L‖_F²")]


class TraceResult(Struct, frozen=True):
    """Sums over the spectrum of a curvature matrix."""

    matrix: Matrix
    trace: Annotated[Estimate, Meta(description="Σ λ")]
    frobenius: Annotated[Estimate, Meta(description="√(Σ λ²)")]
    effective_dimension: Annotated[
        Estimate,
        Meta(
            description="how many eigenvalues exceed the damping: Σ λ / (λ + damping) of a positive semi-definite "
            "matrix, Σ λ² / (λ² + damping²) of an indefinite one; its error holds that of the quadrature too"
        ),
    ]
    damping: float
    participation_ratio: Annotated[
        Estimate, Meta(description="(Σ λ)² / Σ λ²: how many eigenvalues share the curvature")
    ]
    mean_eigenvalue: Annotated[Estimate, Meta(description="trace / parameters")]
    parameters: Annotated[int, Meta(description="n, the dimension of the matrix")]
    probes: Annotated[int, Meta(description="random vectors")]
    steps: Annotated[int, Meta(description="products of a probe for functions of the spectrum")]
    deflated: Annotated[int, Meta(description="Krylov vectors on which the sums are exact")]
    status: Annotated[Status, Meta(description="why the run ended")]
    method: Annotated[
        Literal["probes", "gram", "whole"],
        Meta(
            description="whole: all eigenvalues by n products; gram: all from the rows' Gram matrix"
        ),
    ]
    tensors: list[TensorCurvature]
    split: Split | None = None
    hvp_check: Annotated[
        Number,
        Meta(description="relative difference of one product to finite differences"),
    ] = None
