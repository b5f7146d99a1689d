"""What `curvcli track` answers."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.shared.figures import Figure
from curvcli.analyses.shared.spectrum.eigenpairs import Reach
from curvcli.report.data import ErrorInfo, Number

Edge = Literal["below", "at", "above", "undecided"]


class TrackedValue(Struct, frozen=True):
    """An extreme eigenvalue."""

    value: float
    residual: Annotated[float, Meta(description="some eigenvalue lies within value ± residual")]
    converged: bool


class TrackedTrace(Struct, frozen=True):
    """tr H."""

    value: float
    standard_error: Number


class TrackPoint(Struct, frozen=True, kw_only=True):
    """One checkpoint of the series."""

    step: Annotated[
        int | None,
        Meta(description="global_step or epoch in the file, else from its name; null: neither"),
    ]
    checkpoint: str
    run: Annotated[str | None, Meta(description="folder, where there are several runs")] = None
    optimizer: Annotated[str | None, Meta(description="kind, from the checkpoint's state")] = None
    learning_rate: Annotated[Number, Meta(description="--lr, else the checkpoint's own")] = None
    momentum: Annotated[Number, Meta(description="β of momentum, β₁ of Adam")] = None
    limit: Annotated[
        Number,
        Meta(
            description="λ at which steps grow: 2/lr, 2(1 + β)/lr, or 2(1 + β₁)/((1 − β₁) lr) of D⁻¹H"
        ),
    ] = None
    preconditioned: Annotated[
        TrackedValue | None, Meta(description="largest eigenvalue of D⁻¹H, for Adam")
    ] = None
    dead_fraction: Annotated[Number, Meta(description="of the units that can die")] = None
    accuracy: Number = None
    at_chance: Annotated[
        bool, Meta(description="the loss is no better than that of the best constant predictor")
    ] = False
    statistics: Annotated[
        Number,
        Meta(
            description="largest distance of a BatchNorm's running statistics from those of the data; 1: the same"
        ),
    ] = None
    wrong: Annotated[
        bool,
        Meta(description="sure of wrong answers: few right, and a loss far above a constant's"),
    ] = False
    suspicions: Annotated[
        list[str], Meta(description="what is odd about inputs and outputs, in a few words each")
    ] = []
    weight_rank: Annotated[
        dict[str, float],
        Meta(description="effective rank of each layer's weights: exp of the entropy of σ/Σσ"),
    ] = {}
    feature_rank: Annotated[
        Number, Meta(description="effective rank of what enters the last linear layer")
    ] = None
    noise_scale: Annotated[
        Number,
        Meta(description="tr Σ / |G|² in samples; null where the gradient is within its noise"),
    ] = None
    noise_scale_error: Annotated[Number, Meta(description="standard error")] = None
    moved: Annotated[
        dict[str, float],
        Meta(description="‖Δθ‖/‖θ‖ of each parameter since the checkpoint before"),
    ] = {}
    figures: Annotated[list[Figure], Meta(description="those that --figure names")] = []
    loss: Number = None
    gradient_norm: Number = None
    stationarity: Annotated[Number, Meta(description="ρ = ‖g‖² / (2 ‖H‖ (L − L*))")] = None
    stationarity_interval: Annotated[
        tuple[float, float] | None,
        Meta(
            description="where ρ lies, as far as ‖H‖ is known: between what was seen and the reach"
        ),
    ] = None
    lambda_max: TrackedValue | None = None
    lambda_min: TrackedValue | None = None
    reach: Reach | None = None
    trace: Annotated[TrackedTrace | None, Meta(description="null with --probes 0")] = None
    edge: Annotated[
        Edge | None,
        Meta(
            description="λ against the limit: at: within 30 %, below and above: beyond that, by the interval of the "
            "ratio; undecided: the interval has both, or Adam has taken few steps"
        ),
    ] = None
    sharpness_ratio: Annotated[
        Number,
        Meta(description="λ over the limit, λ of the parameters that the optimizer moves"),
    ] = None
    sharpness_ratio_interval: Annotated[
        tuple[float, float] | None,
        Meta(description="by residual, reach, and the spread of λ over the data at 95 %"),
    ] = None
    warm: Annotated[
        bool, Meta(description="started from the eigenvectors of the checkpoint before")
    ] = False
    matvecs: Annotated[int, Meta(description="products for the eigenvalues")] = 0
    trace_matvecs: int = 0
    limit_matvecs: Annotated[int, Meta(description="products for λ beside the limit")] = 0
    hvp_check: Annotated[
        Number,
        Meta(description="relative difference of one product to finite differences"),
    ] = None
    error: Annotated[
        ErrorInfo | None, Meta(description="why there are no figures for this checkpoint")
    ] = None


class TrackResult(Struct, frozen=True, kw_only=True):
    """Curvature over training."""

    points: list[TrackPoint]
    learning_rate: Number
    edge: Annotated[Number, Meta(description="2/lr: gradient descent is unstable above")]
    failed: Annotated[int, Meta(description="checkpoints without figures")]
