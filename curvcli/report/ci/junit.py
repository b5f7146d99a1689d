"""What held and what did not as JUnit XML, the form that CI systems show as test results.

Valid against the schema of the Jenkins xUnit plugin (junit-10.xsd).
"""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

from curvcli.errors import printable
from curvcli.report.data import Case, Envelope, told


def render(envelope: Envelope[Any], cases: Sequence[Case]) -> str:
    """One suite for each target, one test case for each rule."""
    said = f": {told(envelope.verdict)}" if envelope.verdict else ""
    root = ET.Element("testsuites", {"name": f"curvcli {envelope.command}{said}", **_counts(cases)})
    for suite in dict.fromkeys(c.suite for c in cases):
        own = [c for c in cases if c.suite == suite]
        element = ET.SubElement(root, "testsuite", {"name": printable(suite), **_counts(own)})
        for case in own:
            item = ET.SubElement(
                element,
                "testcase",
                name=printable(case.name),
                classname=printable(suite),
                time=f"{case.seconds:.3f}",
            )
            _state(item, case)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _state(item: ET.Element, case: Case) -> None:
    message = printable(case.message)
    if case.status == "skipped" or (case.status == "undecided" and not case.counts):
        ET.SubElement(item, "skipped", message=message)
    elif case.status == "violation" and not case.counts:
        ET.SubElement(item, "system-out").text = f"{case.severity}: {message}"
    elif case.status in ("violation", "undecided"):
        ET.SubElement(item, "failure", message=message, type=case.status).text = message
    elif case.status == "error":
        ET.SubElement(item, "error", message=message, type=case.status).text = message


def _counts(cases: Sequence[Case]) -> dict[str, str]:
    failed = sum(c.counts and c.status in ("violation", "undecided") for c in cases)
    skipped = sum(
        c.status == "skipped" or (c.status == "undecided" and not c.counts) for c in cases
    )
    return {
        "tests": str(len(cases)),
        "failures": str(failed),
        "errors": str(sum(c.status == "error" for c in cases)),
        **({"skipped": str(skipped)} if skipped else {}),
        "time": f"{sum(c.seconds for c in cases):.3f}",
    }
