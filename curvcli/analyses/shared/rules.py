"""What a finding is judged by: every question names its rules once, in its ``rules.py``."""

from dataclasses import dataclass

from curvcli.report.data import Severity


@dataclass(frozen=True)
class Rule:
    """One kind of finding.

    Args:
        id: ``command.name``, what `check` and other programs know it by.
        severity: of its findings.
        source: what the threshold comes from, or what the rule follows from.
        threshold: what values are held against; None: the finding says it.
        remedy: what to do, which ends the message.
    """

    id: str
    severity: Severity
    source: str
    threshold: float | None = None
    remedy: str = ""
