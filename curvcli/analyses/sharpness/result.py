"""What `curvcli sharpness` answers; every measure says whether rescaling layers changes it."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.report.data import Number

Changes = Annotated[
    bool,
    Meta(description="whether it changes when a ReLU layer is multiplied and the next one divided"),
]


class WorstCase(Struct, frozen=True, kw_only=True):
    """max L(θ + Tu) − L(θ) over ‖u‖ ≤ ρ; T = I, or diag |θ| where it is adaptive."""

    found: Annotated[
        Number,
        Meta(description="rise found by ascent: the worst case is no less; null: NaN or Inf"),
    ]
    found_residual: Annotated[float, Meta(description="rounding in it")]
    rho: float
    quadratic_lower: Annotated[
        Number, Meta(description="the worst case of the quadratic model is no less")
    ]
    quadratic_upper: Annotated[
        Number, Meta(description="and no more: ρ‖g‖ + ½ρ²λ, with the reach of λ_max")
    ]
    probability: Annotated[Number, Meta(description="with which quadratic_upper holds")]
    steps: Annotated[int, Meta(description="of all ascents; a gradient and some losses each")]
    changes_by_rescaling: Changes


class AverageCase(Struct, frozen=True, kw_only=True):
    """E L(θ + σTε) − L(θ), ε standard normal."""

    value: Number
    standard_error: Annotated[Number, Meta(description="over the draws, and rounding of the loss")]
    degrees_of_freedom: int
    sigma: Annotated[float, Meta(description="ρ/√n")]
    changes_by_rescaling: Changes


class NoiseWidth(Struct, frozen=True, kw_only=True):
    """The σ at which E L(θ + σTε) has risen by so much."""

    value: Annotated[Number, Meta(description="null: it does not rise so far, or no time")]
    standard_error: Annotated[Number, Meta(description="over the draws")]
    degrees_of_freedom: int
    rise: float
    changes_by_rescaling: Changes


class ShardCase(Struct, frozen=True, kw_only=True):
    """The mean over shards of the data of the rise after one step of SAM on the shard: no more than the worst case."""

    value: Number
    standard_error: Annotated[Number, Meta(description="over the shards")]
    degrees_of_freedom: int
    shard: Annotated[int, Meta(description="samples of one")]
    rho: float
    changes_by_rescaling: Changes


class Flatness(Struct, frozen=True):
    """Σ ⟨w_s, w_s'⟩ tr H_{s,s'} of one weight."""

    name: str
    value: float
    standard_error: Annotated[Number, Meta(description="over the probes")]
    degrees_of_freedom: int


class RelativeFlatness(Struct, frozen=True, kw_only=True):
    """Relative flatness of all weights; small is flat."""

    value: Annotated[float, Meta(description="sum over the weights")]
    standard_error: Annotated[Number, Meta(description="over the probes")]
    degrees_of_freedom: int
    layers: list[Flatness]
    changes_by_rescaling: Changes


class FisherRao(Struct, frozen=True, kw_only=True):
    """√E⟨θ, ∇ℓ⟩² over the data."""

    value: float
    standard_error: Annotated[Number, Meta(description="sampling error, over parts of the data")]
    degrees_of_freedom: int
    changes_by_rescaling: Changes


class SharpnessResult(Struct, frozen=True, kw_only=True):
    """The measures; null: not asked for, or no time."""

    loss: float
    parameters: int
    worst: WorstCase | None = None
    worst_adaptive: WorstCase | None = None
    average: AverageCase | None = None
    average_adaptive: AverageCase | None = None
    pac_bayes: NoiseWidth | None = None
    pac_bayes_adaptive: NoiseWidth | None = None
    relative_flatness: RelativeFlatness | None = None
    fisher_rao: FisherRao | None = None
    m_sharpness: ShardCase | None = None
    hvp_check: Annotated[
        Number, Meta(description="relative difference of one product to finite differences")
    ] = None
