"""What `curvcli gradients` answers."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.shared.sanity import SanityInfo
from curvcli.report.data import Number

Role = Literal["trunk", "branch", "sum", "unreached"]
IdleCause = Literal["not-given", "no-state", "zero-rate"]
Interval = Annotated[
    tuple[float, float] | None, Meta(description="95 %; null where there are too few points")
]


class Quantiles(Struct, frozen=True):
    """Over the samples."""

    low: Annotated[float, Meta(description="10 %")]
    median: float
    high: Annotated[float, Meta(description="90 %")]


class LayerSignal(Struct, frozen=True, kw_only=True):
    """One call of a layer, in execution order."""

    name: Annotated[
        str, Meta(description="module; #2 … for later calls; relu() is a bare function in a module")
    ]
    kind: str
    role: Annotated[
        Role,
        Meta(
            description="trunk: every path from the loss to the first layer runs through it; branch: bypassed "
            "by a residual connection; sum: a block's output on the trunk that is no layer's own; "
            "unreached: no gradient comes back to it (frozen, or not used by the loss)"
        ),
    ]
    depth: Annotated[
        int, Meta(description="layers with weights executed so far, this one included")
    ]
    activation_rms: Number
    activation_samples: Annotated[
        Quantiles | None, Meta(description="RMS of the single samples' activations")
    ]
    activation_gradient_rms: Annotated[
        Number,
        Meta(description="RMS of ∂ℓ/∂activation, ℓ the loss of one sample (N·L over N samples)"),
    ]
    activation_gradient_samples: Quantiles | None
    activation_gradient_norm: Annotated[
        Number, Meta(description="‖∂ℓ/∂activation‖, root mean square over samples")
    ]
    activation_gradient_peak: Annotated[Number, Meta(description="largest |∂ℓ/∂activation|")]
    weight_rms: Annotated[Number, Meta(description="of the layer's weight matrices")]
    weight_gradient_rms: Annotated[Number, Meta(description="of ∂L/∂weight")]
    gradient_to_weight: Annotated[Number, Meta(description="‖∂L/∂weight‖ / ‖weight‖")]
    weight_scale: Annotated[
        Number, Meta(description="√fan_in times the weights' standard deviation (Linear, Conv)")
    ]
    zero_fraction: Annotated[Number, Meta(description="of the activation's entries")]
    dead_fraction: Annotated[
        Number,
        Meta(
            description="units that fire for no sample; null where there is no activation function"
        ),
    ]
    units: Annotated[int | None, Meta(description="that dead_fraction is a share of")]
    saturated_fraction: Annotated[
        Number, Meta(description="entries with an activation derivative below 10 % of its largest")
    ]
    flat_fraction: Annotated[Number, Meta(description="entries with a derivative below 1e-7")]
    normalised: Annotated[
        bool,
        Meta(
            description="whether a normalisation takes the output: gradients there are as large as it is small"
        ),
    ]
    norm_gain: Annotated[
        Number, Meta(description="LayerNorm, RMSNorm: RMS(weight) · mean(1/σ), its gradient gain")
    ]
    signal_to_noise: Annotated[
        Number, Meta(description="|G| / √(tr Σ / N) of the layer's parameters")
    ]
    signal_to_noise_error: Annotated[Number, Meta(description="standard error")]
    nonfinite: Annotated[int, Meta(description="NaN and Inf in the activation")]
    nonfinite_gradient: int


class Gate(Struct, frozen=True):
    """A gate of a recurrent layer, over all steps, samples and units."""

    mean: float
    saturated_fraction: Annotated[
        float, Meta(description="entries with σ' below 10 % of its largest")
    ]


class TimeTrend(Struct, frozen=True, kw_only=True):
    """Gradients along a sequence."""

    name: str
    kind: Annotated[
        str,
        Meta(description="LSTM, GRU, RNN, a cell called in a loop, or positions (of a sequence)"),
    ]
    steps: int
    gradient: Annotated[
        list[float | None], Meta(description="‖∂ℓ/∂h_t‖ by step, as the layer takes them")
    ]
    gradient_gain: Annotated[
        Number, Meta(description="first step over last one, by a Theil-Sen fit of log ‖∂ℓ/∂h_t‖")
    ]
    gain_per_step: Annotated[Number, Meta(description="of ‖∂ℓ/∂h_t‖, one step further back")]
    gain_per_step_interval: Interval
    lag: Annotated[
        list[float | None],
        Meta(description="‖∂h_T/∂h_t‖_F / √H for lag T − t = 0, 1, …; empty where not measured"),
    ]
    lag_error: Annotated[list[float | None], Meta(description="standard errors; empty where exact")]
    cell_lag: Annotated[list[float | None], Meta(description="‖∂h_T/∂c_t‖_F / √H of an LSTM")]
    decay: Annotated[Number, Meta(description="factor of ‖∂h_T/∂h_t‖ for each step of lag")]
    decay_interval: Interval
    memory_horizon: Annotated[
        Number, Meta(description="steps to a factor of 1/e; null where nothing decays")
    ]
    gates: dict[str, Gate]
    output_error: Annotated[
        Number, Meta(description="of the unrolled layer against its own output, relative")
    ]
    samples: int


class Head(Struct, frozen=True):
    """Attention of one layer."""

    name: str
    fused: Annotated[bool, Meta(description="the weights were recomputed beside a fused kernel")]
    entropy: Annotated[
        list[float | None],
        Meta(description="by head: entropy over its maximum, 1 uniform, 0 a single key"),
    ]


class Noise(Struct, frozen=True):
    """Signal and noise of the whole gradient (McCandlish et al. 2018)."""

    parts: Annotated[int, Meta(description="parts of the data that were compared")]
    gradient_square: Annotated[Number, Meta(description="|G|², unbiased")]
    gradient_square_error: Number
    trace: Annotated[Number, Meta(description="tr Σ of one sample's gradient")]
    trace_error: Number
    critical_batch_size: Annotated[
        Number, Meta(description="tr Σ / |G|² in samples; null where |G|² is within its noise")
    ]
    critical_batch_size_error: Number
    signal_to_noise: Annotated[Number, Meta(description="|G| / √(tr Σ / N) at this data size")]
    signal_to_noise_error: Number


class Spread(Struct, frozen=True):
    """Over the seeds."""

    median: Number
    lowest: Number
    highest: Number


class Scheme(Struct, frozen=True):
    """What another initialisation of the same architecture would give."""

    name: Annotated[str, Meta(description="checkpoint: the weights as they are")]
    seeds: int
    gain_per_layer: Spread
    depth_gain: Spread
    chi: Spread
    lambda_max: Annotated[Spread, Meta(description="largest Hessian eigenvalue of the loss")]
    lambda_max_residual: Annotated[Number, Meta(description="largest residual among the seeds")]
    loss: Spread


class Unmoved(Struct, frozen=True):
    """A parameter with the same values as in the earlier checkpoint."""

    name: str
    cause: Annotated[
        Literal["frozen", "no-gradient", "not-stepped"],
        Meta(
            description="frozen: requires_grad is False; no-gradient: it is exactly zero now; not-stepped: a gradient "
            "arrives, and the optimizer did not use it"
        ),
    ]


class Idle(Struct, frozen=True):
    """A parameter that the optimizer whose state is in the checkpoint does not move."""

    name: str
    cause: Annotated[
        IdleCause,
        Meta(
            description="not-given: not among its parameters; no-state: others have one; zero-rate: that of its group"
        ),
    ]


class GradientsResult(Struct, frozen=True, kw_only=True):
    """How signals and gradients travel through the network."""

    loss: Number
    sanity: Annotated[SanityInfo | None, Meta(description="null where the pass had no answer")] = (
        None
    )
    layers: list[LayerSignal]
    depth_gain: Annotated[
        Number,
        Meta(
            description="‖∂ℓ/∂h‖ at the first over that at the last layer of the trunk, by Theil-Sen"
        ),
    ]
    depth_gain_interval: Interval
    gain_per_layer: Annotated[
        Number, Meta(description="factor of ‖∂ℓ/∂h‖ for each layer further back: √χ")
    ]
    gain_per_layer_interval: Interval
    chi: Annotated[
        Number, Meta(description="mean squared singular value of a layer: gain_per_layer²")
    ]
    chi_interval: Interval
    trend_layers: Annotated[list[str], Meta(description="the points of the fit")]
    activation_gain_per_layer: Annotated[
        Number, Meta(description="factor of ‖h‖ for each layer further on")
    ]
    activation_gain_per_layer_interval: Interval
    residual_growth: Annotated[
        Number, Meta(description="RMS of the last over the first tensor of the residual stream")
    ]
    first_nonfinite: Annotated[
        str | None, Meta(description="first layer in execution order with NaN or Inf in its output")
    ]
    time: list[TimeTrend]
    attention: list[Head]
    noise: Noise | None
    initialisations: Annotated[list[Scheme], Meta(description="best first; empty without --reinit")]
    unused: Annotated[
        list[str], Meta(description="layers with weights that the loss does not depend on")
    ] = []
    unmoved: Annotated[
        list[Unmoved], Meta(description="since the checkpoint of --since; empty without it")
    ] = []
    idle: Annotated[
        list[Idle], Meta(description="by the optimizer's state in the checkpoint; empty without it")
    ] = []
    given: Annotated[
        int | None, Meta(description="parameters that this optimizer has; null without its state")
    ] = None
    tensors: Annotated[int, Meta(description="of parameters, frozen ones too")] = 0
    rows: Annotated[int | None, Meta(description="layers shown in a table; null: all")]
