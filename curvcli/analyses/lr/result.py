"""What `curvcli lr` answers."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.report.data import Number

Kind = Literal["sgd", "momentum", "adam", "adamw"]
Verdict = Literal["works", "diverges", "rises", "dies", "unstable"]


class Bound(Struct, frozen=True, kw_only=True):
    """The largest stable rate on the quadratic that the loss is here."""

    rate: Annotated[Number, Meta(description="limit / λ; null where λ ≤ 0")]
    interval: Annotated[
        tuple[float, float] | None,
        Meta(description="stable below, unstable above; null where λ may be ≤ 0"),
    ]
    limit: Annotated[
        float,
        Meta(
            description="λ · rate at which steps grow: 2, 2(1 + β), or 2(1 + β₁)/(1 − β₁) of Adam"
        ),
    ]
    lambda_max: Annotated[float, Meta(description="of the Hessian; of D⁻¹H for Adam")]
    residual: float


class Trial(Struct, frozen=True, kw_only=True):
    """A short training run at one rate."""

    rate: float
    verdict: Annotated[
        Verdict,
        Meta(
            description="diverges: the loss is not finite or above the start; rises: more than half of the gain was "
            "lost again; dies: units died; unstable: λ · rate is above the limit from start to end"
        ),
    ]
    loss: Annotated[Number, Meta(description="over all batches at the end")]
    lowest: Annotated[Number, Meta(description="loss seen on the way")]
    dead_fraction: Annotated[Number, Meta(description="of the units that can die, at the end")]
    sharpness_ratio: Annotated[
        Number, Meta(description="λ · rate / limit at the end; null where it was not needed")
    ]
    steps: int


class CurvaturePoint(Struct, frozen=True):
    """Curvature along the run at the highest rate that works."""

    step: int
    lambda_max: float


class WarmUp(Struct, frozen=True, kw_only=True):
    """A run whose rate rises linearly, then stays for as long."""

    rate: Annotated[float, Meta(description="that it ends at: twice the highest that works")]
    steps: int
    verdict: Verdict


class LrResult(Struct, frozen=True, kw_only=True):
    """A learning rate that works."""

    optimizer: Kind
    state: Annotated[
        Literal["checkpoint", "fresh"], Meta(description="where moments and buffers come from")
    ]
    bound: Bound
    lowest: Annotated[Number, Meta(description="rate with half of the best gain in loss")]
    best: Annotated[Number, Meta(description="rate with the lowest loss at the end of its run")]
    highest: Annotated[Number, Meta(description="highest rate tried below which all tried work")]
    ends_by: Annotated[
        Verdict | None, Meta(description="of the lowest rate that does not; null: none was found")
    ]
    fails_at: Annotated[Number, Meta(description="the lowest rate tried that does not work")]
    trials: Annotated[list[Trial], Meta(description="by rate")]
    curvature: list[CurvaturePoint]
    warm_up: WarmUp | None
    loss: Annotated[float, Meta(description="at the start")]
    dead_fraction: Annotated[float, Meta(description="at the start")]
    steps: Annotated[int, Meta(description="of each run")]
    checkpoint_rate: Annotated[
        Number, Meta(description="in the optimizer's state; one of those tried")
    ]
    batches: Annotated[int, Meta(description="one a step, in the same order in every run")] = 1
