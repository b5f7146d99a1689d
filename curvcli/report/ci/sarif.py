"""What held and what did not in the Static Analysis Results Interchange Format, SARIF 2.1.0."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from curvcli.errors import printable
from curvcli.report.data import Case, Envelope, told

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_KINDS = {"pass": "pass", "violation": "fail", "error": "fail", "undecided": "review",
          "skipped": "notApplicable"}  # fmt: skip


def render(envelope: Envelope[Any], cases: Sequence[Case]) -> str:
    """One run with one result for each case."""
    rules = list(dict.fromkeys(case.rule for case in cases))
    texts = {case.rule: printable(case.name) for case in reversed(cases)}
    driver = {
        "name": "curvcli",
        "version": envelope.version,
        "rules": [{"id": rule, "shortDescription": {"text": texts[rule]}} for rule in rules],
    }
    results = [_result(case, rules) for case in cases]
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "columnKind": "unicodeCodePoints",
                "results": results,
                "properties": {"verdict": told(envelope.verdict) if envelope.verdict else None},
            }
        ],
    }
    return msgspec.json.format(msgspec.json.encode(log), indent=2).decode() + "\n"


def _result(case: Case, rules: list[str]) -> dict[str, Any]:
    kind = _KINDS[case.status]
    text = f"{printable(case.suite)}: {printable(case.message)}"
    return {
        "ruleId": case.rule,
        "ruleIndex": rules.index(case.rule),
        "kind": kind,
        # SARIF asks for the level "none" wherever the kind is not "fail".
        "level": case.severity if kind == "fail" else "none",
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(case.path)},
                    "region": {"startLine": case.line},
                }
            }
        ],
        "partialFingerprints": {
            "curvcliRule/v1": f"{printable(case.suite)}: {printable(case.name)}"
        },
    }
