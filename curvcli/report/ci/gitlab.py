"""What did not hold as a GitLab code quality report (a subset of the Code Climate format)."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from curvcli.errors import printable
from curvcli.report.data import Case, Envelope

_SEVERITIES = {"error": "major", "warning": "minor", "note": "info"}


def render(envelope: Envelope[Any], cases: Sequence[Case]) -> str:
    """A JSON array with an issue for each case that did not pass."""
    issues = [
        {
            "description": f"{printable(case.name)}: {printable(case.message)}",
            "check_name": case.rule,
            # The same problem keeps its fingerprint while its numbers change.
            "fingerprint": hashlib.sha256(f"{case.suite}\0{case.name}".encode()).hexdigest(),
            "severity": "blocker" if case.status == "error" else _SEVERITIES[case.severity],
            "location": {"path": case.path, "lines": {"begin": case.line}},
        }
        for case in cases
        if case.status not in ("pass", "skipped")
    ]
    return msgspec.json.format(msgspec.json.encode(issues), indent=2).decode() + "\n"
