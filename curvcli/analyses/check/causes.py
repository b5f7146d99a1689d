"""Why a rule is violated: the findings behind it, the likeliest cause first, and the command that shows more."""

from pathlib import Path
from typing import Any

from curvcli.analyses.check.rules import Rule
from curvcli.report.data import Envelope, Finding

# Notes of `gradients` that explain where a training has ended.
_EXPLAINING = ("gradients.not-learned", "gradients.frozen")
# What signals and data that are ill make meaningless.
_EXPLAINED = (
    "hessian",
    "saddle",
    "trace",
    "density",
    "taylor",
    "jacobian",
    "step",
    "landscape",
    "sharpness",
)


def cause_of(rule: Rule, answers: dict[str, Envelope[Any]], target: str) -> str:
    """What to say behind a violated rule; empty where nothing is known.

    Args:
        rule: the violated one.
        answers: of all analyses of the target.
        target: its name.
    """
    path = rule.subject
    if rule.leaves[path].steps[0] == "findings":
        severity = str(rule.leaves[path].steps[1]).removesuffix("s")
        found = [f for f in answers[path.analysis].findings if f.severity == severity]
        return _told(found, path.analysis, target) if found else ""
    if path.analysis not in _EXPLAINED or "gradients" not in answers:
        return ""
    grave = [
        f for f in answers["gradients"].findings if f.severity != "note" or f.rule in _EXPLAINING
    ]
    return f"the likeliest cause: {_told(grave, 'gradients', target)}" if grave else ""


def _told(found: list[Finding], analysis: str, target: str) -> str:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    shown = f"'curvcli {analysis} {Path(target).name}' shows where"
    return f"{found[0].message}{more}; {shown}"
