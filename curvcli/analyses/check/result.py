"""What `curvcli check` answers."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.check.decision import Decision
from curvcli.analyses.shared.figures import Figure
from curvcli.report.data import ErrorInfo, Severity, TargetInfo


class RuleOutcome(Struct, frozen=True, kw_only=True):
    """A rule held against one figure."""

    rule: Annotated[str, Meta(description="the expression")]
    severity: Severity
    decision: Annotated[
        Decision,
        Meta(
            description="pass and violation are certain; undecided: the threshold lies within the interval; error: "
            "there is no figure to decide by; skipped: optional, and there is none"
        ),
    ]
    figure: Figure | None
    threshold: float | str | bool | None
    message: str
    line: Annotated[int, Meta(description="of the target file, 1 where it does not stand there")]


class AnalysisRun(Struct, frozen=True):
    """An analysis that was needed."""

    analysis: str
    seconds: float
    cached: bool
    complete: bool
    error: ErrorInfo | None


class CheckedTarget(Struct, frozen=True, kw_only=True):
    """One target and its rules."""

    name: str
    file: Annotated[str, Meta(description="where findings are shown: target file or checkpoint")]
    target: TargetInfo | None
    rules: list[RuleOutcome]
    analyses: list[AnalysisRun]


class Count(Struct, frozen=True):
    """How many rules ended how."""

    passed: int
    violated: int
    undecided: int
    errors: int
    skipped: int


class CheckResult(Struct, frozen=True, kw_only=True):
    """Whether the rules hold."""

    healthy: Annotated[bool, Meta(description="no violation of severity error, and no error")]
    undecided: Annotated[str, Meta(description="what undecided rules do: fail, warn or pass")]
    confidence: float
    count: Count
    targets: list[CheckedTarget]
    baseline: Annotated[str | None, Meta(description="file that was compared with")]
