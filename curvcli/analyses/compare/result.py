"""What `curvcli compare` answers."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.shared.figures import Figure
from curvcli.report.data import Number, TargetInfo


class FigureComparison(Struct, frozen=True, kw_only=True):
    """One figure of both checkpoints."""

    path: str
    a: Figure
    b: Figure
    difference: Annotated[Number, Meta(description="b − a; null where they are no numbers")]
    ratio: Annotated[Number, Meta(description="b / a")]
    beyond: Annotated[
        bool | None,
        Meta(description="whether they differ, as `by` says; null: one of the values is not known"),
    ]
    by: Annotated[
        Literal["data", "intervals"],
        Meta(
            description="data: by more than three standard errors over pieces of the same data, pair by pair; "
            "intervals: theirs do not overlap, which says nothing of other data"
        ),
    ] = "intervals"


class Eigenspaces(Struct, frozen=True, kw_only=True):
    """How the leading eigenspaces of both Hessians lie to each other."""

    dimension: int
    cosines: Annotated[list[float], Meta(description="of the principal angles, largest first")]
    overlap: Annotated[float, Meta(description="mean squared cosine: 1 the same space")]
    overlap_error: Annotated[
        Number,
        Meta(
            description="bound from residuals and gaps (Davis & Kahan); null where a gap is within its error"
        ),
    ]
    expected_at_random: Annotated[float, Meta(description="k/n, of two random spaces")]
    gaps: Annotated[
        list[float], Meta(description="λ_k − λ_k+1 of A and of B: the space is defined if > 0")
    ]


class LinePoint(Struct, frozen=True):
    """The loss between the checkpoints."""

    position: Annotated[float, Meta(description="0: A, 1: B")]
    loss: Number


class Barrier(Struct, frozen=True, kw_only=True):
    """The loss along the line, against the straight line between its ends (Frankle et al. 2020)."""

    points: list[LinePoint]
    height: Annotated[
        Number, Meta(description="largest L(α) − ((1 − α) L(A) + α L(B)); null: not finite")
    ]
    position: float
    error: Annotated[float, Meta(description="rounding of the loss")]
    lowest: Annotated[float, Meta(description="position of the lowest loss seen")]
    connected: Annotated[bool, Meta(description="height within rounding of zero")]


class Paired(Struct, frozen=True):
    """The difference in loss on the same samples, without weight decay."""

    difference: Annotated[float, Meta(description="L(B) − L(A)")]
    standard_error: Annotated[
        Number, Meta(description="over the pieces of the data, pair by pair; null: too few")
    ]
    pieces: int
    better: Annotated[
        str | None, Meta(description="a or b, beyond three standard errors; null: not decided")
    ]


class Difference(Struct, frozen=True):
    """B − A of a figure of two independent sets of data."""

    difference: float
    standard_error: Number
    beyond: Annotated[
        bool | None, Meta(description="beyond three standard errors; null: no error is known")
    ]


class GradientDifference(Struct, frozen=True):
    """Two gradients of the same weights, or of others."""

    distance: Annotated[float, Meta(description="‖g_B − g_A‖")]
    expected: Annotated[
        Number, Meta(description="√(tr Σ_A/N_A + tr Σ_B/N_B): what sampling alone makes it")
    ]
    cosine: Number
    beyond: Annotated[
        bool | None,
        Meta(
            description="‖g_B − g_A‖² above 1 + 3√2 times its expectation; null: no noise is known"
        ),
    ]


class Sampling(Struct, frozen=True):
    """What differs between two sets of data beyond sampling."""

    loss: Difference
    gradient: GradientDifference
    lambda_max: Annotated[Difference | None, Meta(description="null without hessian")]


class ClassComparison(Struct, frozen=True):
    """One class of the data."""

    number: int
    samples: Annotated[int, Meta(description="in the data of A")]
    loss_a: Number
    loss_b: Number
    lambda_max_a: Annotated[Number, Meta(description="of the class's own loss, to one percent")]
    lambda_max_b: Number


class MovedLayer(Struct, frozen=True, kw_only=True):
    """How far one parameter moved."""

    name: str
    distance: Annotated[float, Meta(description="‖B − A‖")]
    relative: Annotated[Number, Meta(description="‖B − A‖ / ‖A‖")]
    cosine: Annotated[Number, Meta(description="between A and B")]
    share: Annotated[float, Meta(description="of the squared distance of all")]


class CompareResult(Struct, frozen=True, kw_only=True):
    """Two checkpoints of one model."""

    names: Annotated[tuple[str, str], Meta(description="of A and B, as they were given")] = (
        "A",
        "B",
    )
    a: TargetInfo | None
    b: TargetInfo | None
    figures: list[FigureComparison]
    identical: Annotated[bool, Meta(description="weights and buffers are the same to the bit")]
    paired: Annotated[Paired | None, Meta(description="null where the samples are not the same")]
    sampling: Annotated[Sampling | None, Meta(description="null where the data is the same")]
    classes: Annotated[list[ClassComparison], Meta(description="empty without --per-class")]
    eigenspaces: Eigenspaces | None
    line: Barrier
    layers: Annotated[list[MovedLayer], Meta(description="largest relative distance first")]
    distance: Annotated[float, Meta(description="‖B − A‖ over all parameters")]
    confidence: float
