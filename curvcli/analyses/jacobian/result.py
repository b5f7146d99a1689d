"""What `curvcli jacobian` answers."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.report.data import Number

Status = Literal["converged", "max_matvecs", "timeout", "interrupted"]


class Quantiles(Struct, frozen=True):
    """How a number is distributed over the samples."""

    mean: Number
    minimum: Number
    lower_quartile: Number
    median: Number
    upper_quartile: Number
    maximum: Number
    error: Annotated[
        Number,
        Meta(
            description="largest over the samples: standard error of a Frobenius norm (0: exact), "
            "residual of a singular value"
        ),
    ]


class SingularValue(Struct, frozen=True):
    """A singular value with its error."""

    value: Number
    residual: Annotated[
        Number,
        Meta(
            description="some singular value lies within value ± residual: residual of the vectors, rounding of "
            "products, and an estimate of how far rounding of the input moves the matrix (samples only)"
        ),
    ]
    converged: Annotated[bool, Meta(description="residual ≤ tol · max(value, 0.01 σ₁)")]


class SampleJacobian(Struct, frozen=True):
    """The Jacobian of one sample (of one batch, where samples depend on each other)."""

    index: Annotated[int, Meta(description="of the sample over all batches; of its first sample")]
    samples: Annotated[int, Meta(description="that the matrix belongs to: 1 unless coupled")]
    frobenius: Number
    frobenius_standard_error: Annotated[Number, Meta(description="of sampling, and rounding")]
    spectral: Annotated[Number, Meta(description="σ₁ = ‖J‖₂")]
    singular_values: Annotated[list[SingularValue], Meta(description="leading ones, largest first")]
    smallest: Annotated[
        Number, Meta(description="smallest of the min(m, n) singular values; null if not formed")
    ]
    condition: Annotated[
        Number, Meta(description="σ₁ / smallest; null if not formed or singular to rounding")
    ]
    condition_at_least: Annotated[
        Number, Meta(description="what rounding lets one say where the matrix is singular")
    ]
    effective_rank: Annotated[
        Number, Meta(description="exp of the entropy of σ / Σσ; null if not formed")
    ]
    stable_rank: Annotated[Number, Meta(description="‖J‖_F² / ‖J‖₂²")]
    chi: Annotated[Number, Meta(description="‖J‖_F² / n")]
    jump: Annotated[
        Number,
        Meta(
            description="‖ΔJ‖_F across a kink that the sample sits on (equal entries of a maximum pool, a rectifier "
            "at 0): all figures are those of the side that autograd takes; null: none seen"
        ),
    ]


class Matrix(Struct, frozen=True):
    """A whole Jacobian."""

    index: int
    entries: Annotated[list[list[Number]], Meta(description="rows: outputs; columns: inputs")]


class LayerJacobian(Struct, frozen=True):
    """One step of the main path: a module and what follows it up to the next one."""

    name: str
    kind: Annotated[str, Meta(description="class of the module")]
    depth: Annotated[int, Meta(description="place in the path, from 0")]
    inputs: Annotated[int, Meta(description="n")]
    outputs: Annotated[int, Meta(description="m")]
    spectral: Annotated[Number, Meta(description="‖J_l‖₂, mean over the samples")]
    spectral_residual: Annotated[Number, Meta(description="largest over the samples")]
    spectral_maximum: Annotated[Number, Meta(description="largest ‖J_l‖₂ over the samples")]
    chi: Annotated[Number, Meta(description="‖J_l‖_F² / n, mean over the samples")]
    chi_standard_error: Annotated[
        Number, Meta(description="of the norm's estimate in that mean; 0: exact")
    ]
    condition: Annotated[
        Number, Meta(description="median over the samples; null if not formed or singular")
    ]
    isometry: Annotated[
        bool | None,
        Meta(description="all singular values within 10 % of 1, in all samples; null: not decided"),
    ]
    running_spectral: Annotated[
        Number, Meta(description="‖J_l ⋯ J_1‖₂ as measured, mean over the samples")
    ]
    running_spectral_residual: Annotated[Number, Meta(description="largest over the samples")]
    running_chi: Annotated[Number, Meta(description="‖J_l ⋯ J_1‖_F² / n, mean over the samples")]
    running_bound: Annotated[Number, Meta(description="∏ ‖J_i‖₂ up to here, mean over the samples")]


class Path(Struct, frozen=True):
    """The chain of layers as a whole."""

    samples: Annotated[int, Meta(description="that it was measured on")]
    spectral: Annotated[Number, Meta(description="‖J‖₂ of the whole, geometric mean")]
    bound: Annotated[Number, Meta(description="∏ ‖J_l‖₂, geometric mean")]
    looseness: Annotated[Number, Meta(description="bound / spectral")]
    product_check: Annotated[
        Number,
        Meta(description="largest relative difference of J_L ⋯ J_1 v to J v: 0 to rounding"),
    ]
    isometry: Annotated[bool | None, Meta(description="of the whole Jacobian")]


class TimeJacobian(Struct, frozen=True):
    """How a recurrent layer carries its state through time."""

    name: str
    kind: Annotated[str, Meta(description="RNN, GRU or LSTM")]
    state: Annotated[str, Meta(description="h, or h and c side by side")]
    steps: int
    lags: list[int]
    spectral: Annotated[
        list[Number] | None,
        Meta(
            description="‖∂s_T/∂s_{T−lag}‖₂, mean over the samples; null for states of more than 128 units"
        ),
    ]
    frobenius: Annotated[
        list[Number], Meta(description="‖∂s_T/∂s_{T−lag}‖_F, mean over the samples")
    ]
    lyapunov: Annotated[
        Number, Meta(description="largest Lyapunov exponent per step, mean over the samples")
    ]
    lyapunov_error: Annotated[
        Number,
        Meta(description="finite-time error: standard error over blocks of steps and samples"),
    ]
    lyapunov_spectrum: Annotated[list[Number], Meta(description="all exponents, largest first")]
    memory_horizon: Annotated[
        Number,
        Meta(description="steps after which a disturbance has shrunk to 1/e: −1/λ; null if λ ≥ 0"),
    ]
    unroll_error: Annotated[
        Number, Meta(description="largest difference to the layer's own output, relative")
    ]


class TangentKernel(Struct, frozen=True):
    """The empirical neural tangent kernel K = J Jᵀ, J = ∂outputs/∂parameters."""

    samples: int
    outputs: Annotated[int, Meta(description="of each sample")]
    parameters: int
    method: Annotated[
        Literal["gram", "golub-kahan"],
        Meta(description="gram: all eigenvalues; golub-kahan: leading ones"),
    ]
    eigenvalues: Annotated[
        list[SingularValue],
        Meta(
            description="largest first: also the non-zero eigenvalues of the Gauss-Newton matrix JᵀJ"
        ),
    ]
    trace: Annotated[Number, Meta(description="‖J‖_F²")]
    trace_standard_error: Annotated[Number, Meta(description="0: exact")]
    rank: Annotated[int | None, Meta(description="eigenvalues above rounding; null if not formed")]
    condition: Annotated[
        Number, Meta(description="of K; null if not formed or singular to rounding")
    ]
    gauss_newton: Annotated[
        list[SingularValue] | None,
        Meta(
            description="non-zero eigenvalues of the loss' generalised Gauss-Newton matrix on these samples; "
            "null without a loss, targets, or the formed kernel"
        ),
    ]


class JacobianResult(Struct, frozen=True):
    """Norms and singular values of ∂(of)/∂(wrt)."""

    wrt: str
    of: str
    outputs: Annotated[int, Meta(description="m, rows of each matrix")]
    inputs: Annotated[int, Meta(description="n, columns of each matrix")]
    method: Annotated[
        Literal["dense", "golub-kahan", "gram"],
        Meta(description="dense: formed, all singular values; golub-kahan: leading ones"),
    ]
    coupled: Annotated[bool, Meta(description="samples depend on each other: one matrix a batch")]
    status: Status
    frobenius: Quantiles
    spectral: Quantiles
    condition: Annotated[Quantiles | None, Meta(description="null where matrices are not formed")]
    effective_rank: Annotated[Quantiles | None, Meta(description="null where not formed")]
    stable_rank: Quantiles
    samples: list[SampleJacobian]
    worst: Annotated[list[int], Meta(description="indices of the largest spectral norms, in order")]
    matrices: Annotated[list[Matrix], Meta(description="with --full")]
    layers: Annotated[list[LayerJacobian], Meta(description="with --per-layer, first to last")]
    path: Annotated[Path | None, Meta(description="with --per-layer")]
    time: Annotated[list[TimeJacobian], Meta(description="of recurrent layers")]
    ntk: Annotated[TangentKernel | None, Meta(description="with --wrt parameters")]
    micro_batch: Annotated[int, Meta(description="samples at a time")]
