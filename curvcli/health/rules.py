"""A rule: checked against the types of results before anything runs, and decided by intervals afterwards."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from curvcli.analyses import MODULES, get
from curvcli.analyses.figures import Figure, Leaf, Precision, figures, leaf
from curvcli.errors import UsageError, did_you_mean, nearest
from curvcli.health.expression import (
    Baseline,
    Comparing,
    Constant,
    Expression,
    Operation,
    Path,
    Value,
    parse,
    paths,
    uses_baseline,
)
from curvcli.report.data import Envelope, Severity

Decision = Literal["pass", "violation", "undecided", "error", "skipped"]


class RuleEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A rule as it stands in a target file."""

    rule: Annotated[str, Meta(description="the expression")]
    severity: Severity = "error"
    message: Annotated[str, Meta(description="what to tell when it is violated")] = ""
    optional: Annotated[bool, Meta(description="skipped where the figure is null")] = False


class FindingCounts(Struct, frozen=True):
    """How many findings an analysis made, by severity; a field of every analysis."""

    errors: int
    warnings: int
    notes: int


@dataclass(frozen=True)
class Rule:
    """A rule whose every path is known to exist."""

    entry: RuleEntry
    tree: Comparing
    leaves: dict[Path, Leaf]

    @property
    def text(self) -> str:
        """The expression as written."""
        return self.entry.rule

    @property
    def analyses(self) -> list[str]:
        """Analyses that it needs."""
        return list(dict.fromkeys(path.analysis for path in self.leaves))

    @property
    def subject(self) -> Path:
        """The path that ``baseline`` stands for: the first one."""
        return next(iter(self.leaves))

    @property
    def uses_baseline(self) -> bool:
        """Whether it needs one."""
        return uses_baseline(self.tree.left) or uses_baseline(self.tree.right)


def askable() -> list[str]:
    """Analyses of one target."""
    return [name for name in MODULES if get(name).targets == "one"]


def make_rule(given: str | RuleEntry) -> Rule:
    """Parse a rule and hold it against the types of the results.

    Raises:
        UsageError: the rule is not understood, or names what no analysis has.
    """
    entry = RuleEntry(given) if isinstance(given, str) else given
    tree = parse(entry.rule)
    found = [*paths(tree.left), *paths(tree.right)]
    if not found:
        raise UsageError(
            f"the rule {entry.rule!r} names no figure", "write analysis.field, e.g. info.nonfinite"
        )
    leaves = {path: _leaf(path, entry.rule) for path in found}
    rule = Rule(entry, tree, leaves)
    if rule.uses_baseline and len({str(p) for p in found}) > 1:
        raise UsageError(
            f"the rule {entry.rule!r} names several figures: which baseline is meant?",
            "a rule with 'baseline' names one figure",
        )
    if sum("*" in p.steps for p in leaves) and len(leaves) > 1:
        raise UsageError(
            f"the rule {entry.rule!r} has [*] beside another figure", "compare [*] with constants"
        )
    left = _kind(tree.left, rule)
    if isinstance(tree.right, tuple):
        for constant in tree.right:
            _matching(rule, left, _constant_kind(constant))
            _check_choice(rule, tree.left, constant)
    else:
        right = _kind(tree.right, rule)
        _matching(rule, left, right)
        if tree.sign in ("<", "<=", ">", ">=") and "number" not in (left, right):
            raise UsageError(
                f"the rule {entry.rule!r} orders {left or right} by {tree.sign}", "use == or !="
            )
        for side, other in ((tree.left, tree.right), (tree.right, tree.left)):
            if isinstance(other, Value):
                _check_choice(rule, side, other.value)
    return rule


def _leaf(path: Path, text: str) -> Leaf:
    names = askable()
    if path.analysis not in names:
        raise UsageError(
            f"the rule {text!r}: there is no analysis {path.analysis!r}."
            + did_you_mean(path.analysis, names),
            f"analyses: {', '.join(names)}",
        )
    try:
        if path.steps[0] == "findings":
            found = leaf(FindingCounts, path.steps[1:], f"{path.analysis}.findings")
            return dataclasses.replace(found, steps=("findings", *found.steps))
        return leaf(get(path.analysis).result, path.steps, path.analysis)
    except UsageError as error:
        raise UsageError(f"the rule {text!r}: {error.message}", error.hint) from None


def _kind(expression: Expression, rule: Rule) -> str | None:
    """number, text or boolean; None for null."""
    if isinstance(expression, Path):
        kind: str = rule.leaves[expression].kind
        return "number" if kind == "integer" else kind
    if isinstance(expression, Baseline):
        return _kind(rule.subject, rule)
    if isinstance(expression, Value):
        return _constant_kind(expression.value)
    for operand in expression.operands:
        inner = _kind(operand, rule)
        if inner != "number":
            raise UsageError(
                f"the rule {rule.text!r} calculates with {inner or 'null'}",
                "only numbers can be calculated with",
            )
    return "number"


def _constant_kind(value: Constant) -> str | None:
    if value is None:
        return None
    return "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def _matching(rule: Rule, left: str | None, right: str | None) -> None:
    if left != right and None not in (left, right):
        raise UsageError(
            f"the rule {rule.text!r} compares a {left} with a {right}",
            "a text stands in quotes; numbers, true and false do not",
        )


def _check_choice(rule: Rule, side: Expression, value: Constant) -> None:
    if not (isinstance(side, Path) and isinstance(value, str)):
        return
    choices = rule.leaves[side].choices
    if choices and value not in choices:
        raise UsageError(
            f"the rule {rule.text!r}: {side} is never {value!r}.{did_you_mean(value, choices)}",
            f"it is one of {', '.join(nearest(value, choices, 3) or choices)}"
            if len(choices) > 8
            else f"it is one of {', '.join(choices)}",
        )


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
    subject = values[rule.subject]
    if not subject:
        return [Outcome("skipped", None, None, f"{rule.subject} has no entries")]
    outcomes = []
    for figure in subject:
        chosen = {
            path: (figure if path == rule.subject else found[0]) for path, found in values.items()
        }
        outcomes.append(_decide(rule, chosen, figure, baseline))
    return outcomes


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


def read_entries(given: list[Any]) -> list[RuleEntry]:
    """Rules as texts or tables, validated."""
    return [
        RuleEntry(item) if isinstance(item, str) else msgspec.convert(item, RuleEntry)
        for item in given
    ]
