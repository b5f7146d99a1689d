"""What `curvcli landscape` answers."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.report.data import Number

Grid = Annotated[list[list[Number]], Meta(description="a row for each place on the second axis")]


class Axis(Struct, frozen=True):
    """One direction Δ."""

    name: str
    norm: Annotated[float, Meta(description="‖Δ‖: a place of 1 lies so far away")]
    low: float
    high: float
    slope: Annotated[float, Meta(description="gᵀΔ")]
    curvature: Annotated[float, Meta(description="ΔᵀHΔ")]
    curvature_residual: Annotated[float, Meta(description="rounding in it")]


class Quadratic(Struct, frozen=True):
    """The second-order model L + s gᵀΔ + ½ s² ΔᵀHΔ + … beside the truth."""

    mixed: Annotated[Number, Meta(description="Δ₁ᵀHΔ₂; null on a line")]
    trust: Annotated[
        float, Meta(description="error, relative to its terms, up to which it is right")
    ]
    right_to: Annotated[
        float, Meta(description="distance up to which it is right at all points looked at")
    ]
    wrong_from: Annotated[
        Number, Meta(description="distance of the nearest point where it is wrong; null: nowhere")
    ]


class Lowest(Struct, frozen=True):
    """Where the loss is lowest, of all points looked at."""

    place: list[float]
    distance: Annotated[float, Meta(description="from the weights")]
    loss: float
    change: Annotated[float, Meta(description="its loss less that of the weights")]
    change_residual: Annotated[float, Meta(description="rounding in the change")]
    change_standard_error: Annotated[
        Number, Meta(description="sampling error of the change, over parts of the same data")
    ]
    lower: Annotated[bool, Meta(description="on this data, beyond rounding")]
    beyond_sampling: Annotated[
        bool | None, Meta(description="by more than 3 standard errors; null: not known")
    ]


class Bend(Struct, frozen=True):
    """Whether the loss is convex on the lines through the points looked at."""

    convex: Annotated[bool, Meta(description="no point lies above a chord, beyond rounding")]
    above_chord: Annotated[float, Meta(description="how far a point lies above a chord, at most")]
    above_chord_residual: float
    place: list[float]


class Mark(Struct, frozen=True):
    """A checkpoint on the map."""

    name: str
    place: list[float]
    off: Annotated[float, Meta(description="distance from the line or plane")]
    loss: Annotated[Number, Meta(description="at its place on the line or plane")]


class Barrier(Struct, frozen=True):
    """The loss on the straight line between two checkpoints."""

    a: str
    b: str
    height: Annotated[
        Number,
        Meta(description="max of the loss above the straight line between its ends, at least 0"),
    ]
    height_residual: Annotated[float, Meta(description="rounding")]
    height_standard_error: Annotated[Number, Meta(description="over parts of the data")]
    position: Annotated[float, Meta(description="of the highest point: 0 at a, 1 at b")]
    losses: tuple[Number, Number]


class CurvePoint(Struct, frozen=True, kw_only=True):
    """The loss at θ + tΔ."""

    t: float
    distance: Annotated[float, Meta(description="‖tΔ‖")]
    loss: Number
    loss_standard_error: Annotated[Number, Meta(description="over parts of the data")]
    change_standard_error: Annotated[
        Number, Meta(description="of L(θ + tΔ) − L(θ), from the same parts")
    ]
    model: Annotated[Number, Meta(description="the quadratic model; null: none is made")] = None
    accuracy: Number = None
    other_loss: Annotated[Number, Meta(description="on --other-data")] = None
    other_loss_standard_error: Number = None
    other_accuracy: Number = None


class Map(Struct, frozen=True, kw_only=True):
    """The loss over a plane; null: not finite, or not looked at for want of time."""

    x: Annotated[list[float], Meta(description="places on the first axis")]
    y: Annotated[list[float], Meta(description="places on the second axis")]
    loss: Grid
    loss_standard_error: Grid
    change_standard_error: Grid
    model: Grid
    accuracy: Grid
    other_loss: Grid
    other_accuracy: Grid


class LandscapeResult(Struct, frozen=True, kw_only=True):
    """The loss along a line or over a plane through θ."""

    axes: list[Axis]
    cosine: Annotated[
        Number, Meta(description="between both directions; made orthogonal unless both are random")
    ]
    loss: Annotated[float, Meta(description="at the weights, as evaluated here")]
    loss_standard_error: Number
    curve: list[CurvePoint]
    map: Map | None
    lowest: Lowest | None
    bend: Bend
    quadratic: Annotated[
        Quadratic | None, Meta(description="null where statistics are recomputed: another loss")
    ]
    marks: list[Mark]
    barriers: list[Barrier]
    variance_shares: Annotated[
        list[float], Meta(description="pca: of the series' variance, along each axis")
    ]
    path: Annotated[bool, Meta(description="whether the marks are a path of training")]
    norm_statistics: Annotated[
        Literal["keep", "recompute", "none"], Meta(description="none: no layer has any")
    ]
    nonfinite: Annotated[int, Meta(description="points where the loss is NaN or Inf")]
    missing: Annotated[int, Meta(description="points that were not looked at")]
    evaluations: Annotated[int, Meta(description="points that were looked at")]
    parts: Annotated[int, Meta(description="of the data, for sampling errors")]
    parameters: int
    hvp_check: Annotated[
        Number, Meta(description="relative difference of one product to finite differences")
    ] = None
