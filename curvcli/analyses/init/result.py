"""What `curvcli init` answers."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.sanity import SanityInfo
from curvcli.report.data import Number

NOT_EVALUATED = "the loss cannot be evaluated yet"
"""How the note begins that says why a trial failed."""


class TrainingInfo(Struct, frozen=True, kw_only=True):
    """What the checkpoint says of its training."""

    step: int | None
    epoch: int | None
    optimizer: Annotated[str | None, Meta(description="sgd, momentum, adam, adamw, …")]
    learning_rate: Number
    momentum: Number
    betas: tuple[float, float] | None
    weight_decay: Number


class InitResult(Struct, frozen=True):
    """The target file, and how complete it is."""

    path: Annotated[str, Meta(description="the target file that was written")]
    format: str
    recognised: Annotated[str | None, Meta(description="what network it is, if that was found out")]
    settings: Annotated[dict[str, str], Meta(description="what was found out")]
    unknown: Annotated[list[str], Meta(description="settings that only you know")]
    text: Annotated[str, Meta(description="content of the target file")]
    training: Annotated[
        TrainingInfo | None, Meta(description="null where the file says nothing")
    ] = None
    sanity: Annotated[
        SanityInfo | None, Meta(description="null until model, data and loss are known")
    ] = None
