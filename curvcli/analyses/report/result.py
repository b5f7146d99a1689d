"""What `curvcli report` answers."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from curvcli.report.data import Finding, Headline, TargetInfo


class Part(Struct, frozen=True, kw_only=True):
    """The answer of one analysis."""

    analysis: str
    target: Annotated[str, Meta(description="whose it is; of a comparison or a series: all")]
    command: Annotated[
        str | None, Meta(description="that asks it again; null: of objects in Python")
    ]
    seconds: float
    complete: bool
    verdict: Headline | None
    findings: list[Finding]
    notes: list[str]
    result: Annotated[Any, Meta(description="as `curvcli schema ANALYSIS` says")]


class LeftOut(Struct, frozen=True):
    """An analysis that has no answer."""

    analysis: str
    target: str
    reason: str


class ReportResult(Struct, frozen=True, kw_only=True):
    """All answers of one run."""

    targets: list[TargetInfo]
    overall: Annotated[
        Part | None, Meta(description="`compare` of two checkpoints, or `track` of a series")
    ]
    parts: list[Part]
    left_out: list[LeftOut]
