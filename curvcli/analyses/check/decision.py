"""A rule held against answers: intervals are compared, so that a decision is certain or not made."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from curvcli.analyses.check.expression import (
    Baseline,
    Comparing,
    Expression,
    Operation,
    Path,
    Value,
)
from curvcli.analyses.check.rules import FindingCounts, Rule
from curvcli.analyses.shared.figures import Figure, Precision, figures
from curvcli.analyses.shared.paths import Leaf
from curvcli.report.data import Envelope

Decision = Literal["pass", "violation", "undecided", "error", "skipped"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Outcome:
    """What became of a rule for one figure."""

    decision: Decision
    figure: Figure | None
    threshold: float | str | bool | None
    reason: str = ""


class _UnknownError(Exception):
    """A figure that is null."""


def decide(
    rule: Rule,
    answers: dict[str, Envelope[Any]],
    precision: Callable[[str], Precision],
    baseline: Callable[[str], Figure | None],
) -> list[Outcome]:
    """Hold a rule against the answers: one outcome, or one for each entry of ``[*]``.

    Args:
        rule: the rule.
        answers: of the analyses it needs.
        precision: by analysis.
        baseline: the figure of a path in the baseline.
    """
    values: dict[Path, list[Figure]] = {}
    for path, found in rule.leaves.items():
        envelope = answers[path.analysis]
        try:
            values[path] = figures(
                _root(envelope, found), found, path.analysis, precision(path.analysis)
            )
        except LookupError as error:
            decision: Decision = "skipped" if rule.entry.optional else "error"
            return [Outcome(decision, None, None, str(error.args[0]))]
    open_ = next(
        (reason for path in values if (reason := _open(rule, path, values[path], answers))), None
    )
    if open_ is not None:
        return [Outcome("undecided", figure, None, open_) for figure in values[rule.subject]]
    subject = values[rule.subject]
    if not subject:
        return [Outcome("skipped", None, None, f"{rule.subject} has no entries")]
    outcomes = []
    for figure in subject:
        if _says_nothing(figure):
            reason = "cannot be decided on this network: its interval is the whole line"
            outcomes.append(Outcome("skipped", figure, None, reason))
            continue
        chosen = {
            path: (figure if path == rule.subject else found[0]) for path, found in values.items()
        }
        outcomes.append(_decide(rule, chosen, figure, baseline))
    return outcomes


def _says_nothing(figure: Figure) -> bool:
    """A fit over too few layers has an interval without ends: no threshold would ever be decided."""
    return (
        figure.basis == "interval"
        and figure.value is not None
        and (figure.bounds == (-math.inf, math.inf))
    )


# Answers that say that nothing is known yet.
_OPEN = ("inconclusive", "undecided", "unknown")


def _open(
    rule: Rule, path: Path, found: list[Figure], answers: dict[str, Envelope[Any]]
) -> str | None:
    """Why a verdict or a count of findings is not known yet, if it is not: nothing may be said to hold then."""
    counts = rule.leaves[path].steps[0] == "findings"
    texts = [f.value for f in found if isinstance(f.value, str)]
    if not counts and not texts:
        return None
    named = {o.value for o in _values(rule.tree) if isinstance(o.value, str)}
    unknown = next((t for t in texts if t in _OPEN and t not in named), None)
    if unknown is not None:
        return f"{path} is {unknown}"
    if answers[path.analysis].complete:
        return None
    if counts and any(isinstance(f.value, int) and f.value > 0 for f in found):
        return None  # those that were found are found
    return f"{path.analysis} ended before its answer was complete"


def _values(tree: Comparing) -> list[Value]:
    sides = [tree.left, *(tree.right if isinstance(tree.right, tuple) else [tree.right])]
    return [s if isinstance(s, Value) else Value(s) for s in sides if isinstance(s, Value | str)]


def _root(envelope: Envelope[Any], found: Leaf) -> Any:
    if found.steps[0] != "findings":
        return envelope.result
    counts = {
        s: sum(f.severity == s for f in envelope.findings) for s in ("error", "warning", "note")
    }
    return {"findings": FindingCounts(counts["error"], counts["warning"], counts["note"])}


def _decide(
    rule: Rule,
    chosen: dict[Path, Figure],
    figure: Figure,
    baseline: Callable[[str], Figure | None],
) -> Outcome:
    tree = rule.tree
    before = baseline(figure.path) if rule.uses_baseline else None
    if rule.uses_baseline and before is None:
        return Outcome(
            "error", figure, None, f"the baseline has no {figure.path}: run with --update-baseline"
        )

    def known(expression: Expression) -> Any:
        """The interval of a number, or the value itself."""
        if isinstance(expression, Value):
            value = expression.value
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return (float(value), float(value)) if number else value  # type: ignore[arg-type]
        if isinstance(expression, Operation):
            return _calculate(expression.sign, [known(o) for o in expression.operands])
        found = before if isinstance(expression, Baseline) else chosen[expression]
        assert found is not None
        if found.value is None:
            raise _UnknownError(found.path)
        return found.value if isinstance(found.value, bool | str) else found.bounds

    if _about_null(tree):
        value = chosen[rule.subject].value
        holds = (value is None) == (tree.sign == "==")
        return Outcome("pass" if holds else "violation", figure, None)
    try:
        left = known(tree.left)
        if isinstance(tree.right, tuple):
            rights = [known(Value(c)) for c in tree.right]
            decision = _among(left, rights, tree.sign)
            return Outcome(decision, figure, ", ".join(str(c) for c in tree.right))
        right = known(tree.right)
    except _UnknownError as unknown:
        reason = f"{unknown.args[0]} has no value"
        return Outcome("skipped" if rule.entry.optional else "error", figure, None, reason)
    except ZeroDivisionError:
        return Outcome("undecided", figure, None, "a divisor may be zero")
    decision = _compare(left, tree.sign, right)
    limit = right if isinstance(tree.left, Path | Operation) else left
    shown = limit if not isinstance(limit, tuple) else _nearest_edge(limit, figure)
    return Outcome(decision, figure, shown)


def _about_null(tree: Comparing) -> bool:
    sides = (tree.left, tree.right)
    return any(isinstance(s, Value) and s.value is None for s in sides)


def _nearest_edge(limit: Interval, figure: Figure) -> float:
    low, high = limit
    if isinstance(figure.value, int | float):
        return low if abs(low - figure.value) <= abs(high - figure.value) else high
    return low


def _among(left: Any, rights: list[Any], sign: str) -> Decision:
    each = [_compare(left, "==", right) for right in rights]
    if "pass" in each:
        found: Decision = "pass"
    elif "undecided" in each:
        return "undecided"
    else:
        found = "violation"
    return found if sign == "in" else _opposite(found)


def _opposite(decision: Decision) -> Decision:
    swapped: dict[Decision, Decision] = {"pass": "violation", "violation": "pass"}
    return swapped.get(decision, decision)


def _compare(left: Any, sign: str, right: Any) -> Decision:
    """Certain, certainly not, or undecided."""
    if not (isinstance(left, tuple) and isinstance(right, tuple)):
        same = left == right
        return "pass" if same == (sign == "==") else "violation"
    (a, b), (c, d) = left, right
    if sign == "<":
        return "pass" if b < c else "violation" if a >= d else "undecided"
    if sign == "<=":
        return "pass" if b <= c else "violation" if a > d else "undecided"
    if sign == ">":
        return _compare(right, "<", left)
    if sign == ">=":
        return _compare(right, "<=", left)
    equal: Decision = "pass" if a == b == c == d else "violation" if b < c or d < a else "undecided"
    return equal if sign == "==" else _opposite(equal)


def _calculate(sign: str, operands: list[Interval]) -> Interval:
    """Interval arithmetic."""
    low, high = operands[0]
    if sign == "neg":
        return -high, -low
    if sign == "abs":
        return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))
    other_low, other_high = operands[1]
    if sign == "+":
        return low + other_low, high + other_high
    if sign == "-":
        return low - other_high, high - other_low
    if sign == "/":
        if other_low <= 0 <= other_high:
            raise ZeroDivisionError
        other_low, other_high = 1 / other_high, 1 / other_low
    products = [x * y for x in (low, high) for y in (other_low, other_high)]
    finite = [0.0 if math.isnan(p) else p for p in products]
    return min(finite), max(finite)
