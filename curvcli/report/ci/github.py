"""What did not hold as annotations of GitHub Actions: workflow commands on stdout."""

from collections.abc import Sequence
from typing import Any

from curvcli.errors import printable
from curvcli.report.data import Case, Envelope, told


def render(envelope: Envelope[Any], cases: Sequence[Case]) -> str:
    """One ``::error``, ``::warning`` or ``::notice`` for each case that did not pass, then a line for the log."""
    lines = []
    if envelope.verdict is not None:
        lines.append(f"curvcli {envelope.command}: {told(envelope.verdict)}")
    for case in cases:
        if case.status in ("pass", "skipped"):
            continue
        level = "error" if case.counts else "notice" if case.severity == "note" else "warning"
        place = f"file={_property(case.path)},line={case.line},title={_property(case.name)}"
        lines.append(f"::{level} {place}::{_data(case.message)}")
    passed = sum(c.status == "pass" for c in cases)
    skipped = sum(c.status == "skipped" for c in cases)
    left = f", {skipped} skipped" if skipped else ""
    lines.append(f"curvcli {envelope.command}: {passed} of {len(cases) - skipped} rules hold{left}")
    return "\n".join(lines) + "\n"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
