"""What `curvcli hessian` answers."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.hessian.layers_result import PerLayer
from curvcli.analyses.shared.spectrum.eigenpairs import Eigenpair, Reach
from curvcli.analyses.shared.spectrum.matrix_options import Matrix, PreconditionerInfo
from curvcli.report.data import Number

Status = Literal["converged", "max_matvecs", "timeout", "interrupted"]


class Sampled(Struct, frozen=True):
    """vᵀFv of a Fisher matrix's eigenvector, as far as drawing targets moves it."""

    expected: Annotated[float, Meta(description="over all targets, exactly")]
    monte_carlo_standard_error: Annotated[
        float,
        Meta(
            description="of vᵀF̂v over the draws, for a fixed v; the eigenvector of the drawn matrix is chosen for "
            "its value, so that the eigenvalue lies above vᵀFv"
        ),
    ]


class HessianResult(Struct, frozen=True):
    """The ends of the spectrum of ∇²L(θ), or of another curvature matrix."""

    top: Annotated[list[Eigenpair], Meta(description="largest first")]
    bottom: Annotated[list[Eigenpair], Meta(description="smallest first")]
    reach: Reach
    status: Annotated[Status, Meta(description="why the run ended")]
    loss: float
    gradient_norm: Annotated[
        float, Meta(description="‖∇L‖; ‖D^(-1/2) ∇L‖ for the preconditioned Hessian")
    ]
    parameters: Annotated[int, Meta(description="n, the dimension of the Hessian")]
    untouched: Annotated[
        int,
        Meta(
            description="of these, entries of embeddings that no sample looks up: exactly zero rows of H"
        ),
    ]
    matrix: Matrix
    hvp_check: Annotated[
        Number,
        Meta(
            description="relative difference of one product to finite differences of gradients (of outputs for ggn "
            "and Fisher matrices)"
        ),
    ]
    order: Annotated[
        Literal["value", "magnitude"],
        Meta(description="whether top means largest λ or largest |λ|"),
    ]
    products: Annotated[
        Literal["keep", "rebuild", "finite-difference"],
        Meta(description="how products were computed"),
    ]
    micro_batch: Annotated[int | None, Meta(description="samples at a time; null: whole batches")]
    basis: Annotated[int, Meta(description="Krylov vectors that could be held")]
    restarts: int
    copies_found: Annotated[
        int, Meta(description="eigenvalues that only the look for copies found")
    ]
    method: Annotated[
        Literal["lanczos", "gram"],
        Meta(description="gram: the whole spectrum, from the Gram matrix of the rows"),
    ] = "lanczos"
    preconditioner: PreconditionerInfo | None = None
    sampled: Annotated[
        list[Sampled] | None,
        Meta(description="of the top and then the bottom pairs; for the Fisher matrix only"),
    ] = None
    per_layer: Annotated[
        PerLayer | None, Meta(description="null: not asked for, or not begun in time")
    ] = None
