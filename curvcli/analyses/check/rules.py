"""A rule, checked against the types of results before anything runs."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from curvcli.analyses.check.expression import (
    Baseline,
    Comparing,
    Constant,
    Expression,
    Path,
    Value,
    parse,
    paths,
    uses_baseline,
)
from curvcli.analyses.registry import NAMES, get
from curvcli.analyses.shared.paths import Leaf, known_paths, leaf
from curvcli.errors import UsageError, did_you_mean, nearest
from curvcli.report.data import Severity

# Figures by other names that they go by.
_ALIASES = {
    "lambda_max": "hessian.top[0].value",
    "lambda_min": "hessian.bottom[0].value",
    "sharpness": "hessian.top[0].value",
    "nan": "info.nonfinite",
}


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
    return [name for name in NAMES if get(name).targets == "one"]


def make_rule(given: str | RuleEntry, constants: Mapping[str, float] | None = None) -> Rule:
    """Parse a rule and hold it against the types of the results; ``constants`` as of `parse`.

    Raises:
        UsageError: the rule is not understood, or names what no analysis has.
    """
    entry = RuleEntry(given) if isinstance(given, str) else given
    tree = parse(entry.rule, constants)
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
        unknown = re.search(r"has no field '(\w+)'", error.message)
        meant = _meant(path.analysis, unknown[1], names) if unknown else None
        message = re.sub(r" Did you mean .*", "", error.message) if meant else error.message
        told = f" Did you mean {meant!r}?" if meant else ""
        raise UsageError(f"the rule {text!r}: {message}{told}", error.hint) from None


def _meant(analysis: str, word: str, names: list[str]) -> str | None:
    """A figure whose name is the one asked for, in this analysis or another; else one whose name has it as a word."""
    if word in _ALIASES:
        return _ALIASES[word]
    same = [
        (name != word, name != analysis, known.count("."), f"{name}.{known}")
        for name in names
        for known in known_paths(get(name).result)
        if word in re.findall(r"\w+", known)[-2:]
    ]
    if same:
        return min(same, key=lambda found: found[:3])[3]
    last = {re.findall(r"\w+", k)[-1]: k for k in known_paths(get(analysis).result)}
    longer = next((n for n in last if word in n.split("_")), None)
    return f"{analysis}.{last[longer]}" if longer else None


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


def read_entries(given: list[Any]) -> list[RuleEntry]:
    """Rules as texts or tables, validated."""
    return [
        RuleEntry(item) if isinstance(item, str) else msgspec.convert(item, RuleEntry)
        for item in given
    ]
