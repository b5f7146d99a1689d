"""Whether the rules hold, and which target fails, in one sentence."""

from pathlib import Path

from curvcli.analyses.check.result import CheckResult, RuleOutcome
from curvcli.analyses.check.view import why_undecidable
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import without_threshold
from curvcli.report.data import Headline, Level


def headline(answer: Answer[CheckResult]) -> Headline:
    """All hold; or the first that does not, with its target."""
    result = answer.result
    if not result.targets:
        return Headline("good", "No target file is among the files: nothing was checked.")
    rules = [(target, rule) for target in result.targets for rule in target.rules]
    failing = [
        (t, r) for t, r in rules
        if r.decision == "error" or (r.decision == "violation" and r.severity == "error")
    ]  # fmt: skip
    warned = [(t, r) for t, r in rules if r.decision == "violation" and r.severity == "warning"]
    open_ = [(t, r) for t, r in rules if r.decision == "undecided"]
    told = next(
        (found for found in (failing, open_ if not result.healthy else [], warned, open_) if found),
        None,
    )
    targets = f" for {len(result.targets)} targets" if len(result.targets) > 1 else ""
    if told is None:
        return _nothing_fails(result, [rule for _, rule in rules], targets)
    level: Level = "bad" if told is failing else "attention"
    target, rule = told[0]
    reason = why_undecidable(rule)
    alike = [r for t, r in told if t is target and reason and why_undecidable(r) == reason]
    rest = len(told) - max(1, len(alike))
    said = _said(rule)
    if len(alike) > 1:
        said = f"{len(alike)} of {len(target.rules)} rules cannot be decided: {reason.rstrip('.')}"
    more = f"; {rest} more below" if rest else ""
    return Headline(level, f"{Path(target.name).name}: {said}{more}.")


def _nothing_fails(result: CheckResult, rules: list[RuleOutcome], targets: str) -> Headline:
    """How many of the rules that could be decided hold; without any, nothing is called healthy."""
    skipped = [r for r in rules if r.decision == "skipped"]
    passed = sum(r.decision == "pass" for r in rules)
    noted = sum(r.decision == "violation" for r in rules)
    decided = len(rules) - len(skipped)
    if not decided:
        more = f"; {len(skipped) - 1} more skipped" if len(skipped) > 1 else ""
        return Headline("attention", f"No rule was decided: {skipped[0].message}{more}.")
    which = f"{decided} rules" + (" that were decided" if skipped else "")
    held = f"all {which} hold" if passed == decided else f"{passed} of {which} hold"
    if decided == passed == 1:
        held = "the one rule that was decided holds" if skipped else "the rule holds"
    more = f"; {noted} noted below" if noted else ""
    more += f"; {len(skipped)} skipped" if skipped else ""
    dull = [t for t in result.targets if t.target and t.target.fit and t.target.fit.at_chance]
    if dull:
        name = Path(dull[0].name).name
        text = f"{name}: {held}, but the network is no better than a constant{more}."
        return Headline("attention", text)
    if not passed:
        return Headline("attention", f"Nothing fails, but {held}{targets}{more}.")
    return Headline("good", f"Healthy: {held}{targets}{more}.")


def _said(rule: RuleOutcome) -> str:
    """What was found; of a rule over findings that is their message, and the rule itself says no more."""
    ending = f" ({rule.rule} does not hold)"
    said = without_threshold(rule.message.removesuffix(ending)).rstrip(".")
    return said if rule.message.endswith(ending) or rule.rule in said else f"{rule.rule}: {said}"
