"""`curvcli check`: do checkpoints keep the rules that their project sets?"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from curvcli.analyses.check.answers import Answers, Budget, run_analyses
from curvcli.analyses.check.baseline import (
    BaselineFile,
    BaselineTarget,
    entry_of,
    key_of,
    read_baseline,
    write_baseline,
)
from curvcli.analyses.check.causes import cause_of
from curvcli.analyses.check.command import CheckOptions
from curvcli.analyses.check.decision import Outcome, decide
from curvcli.analyses.check.findings import FINDINGS
from curvcli.analyses.check.result import (
    AnalysisRun,
    CheckedTarget,
    CheckResult,
    Count,
    RuleOutcome,
)
from curvcli.analyses.check.rules import Rule, RuleEntry, make_rule, read_entries
from curvcli.analyses.check.view import described, why_undecidable
from curvcli.analyses.registry import get
from curvcli.analyses.shared.answer import Answer, error_info
from curvcli.analyses.shared.figures import Figure, Precision
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.settings import parse_seconds
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import EXIT_NO_ANSWER, EXIT_OK, EXIT_VIOLATION, CurvError, UsageError
from curvcli.loading.spec import TargetSpec

DEFAULT_RULES = (
    RuleEntry("info.nonfinite == 0", message="the weights contain NaN or Inf", optional=True),
    RuleEntry("backprop.findings.errors == 0", message="the gradient is not that of the loss"),
    RuleEntry("gradients.findings.errors == 0", message="data, signals or gradients are ill"),
    RuleEntry("gradients.findings.warnings == 0", severity="warning",
              message="data, signals or gradients are suspect"),
    RuleEntry("gradients.findings.notes == 0", severity="note", message="worth a look"),
    # Also well trained networks often stop beside a little negative curvature: one of 20 healthy ones does.
    RuleEntry('saddle.verdict not in ["strict-saddle", "local-maximum"]', severity="note",
              message="training has not reached a minimum"),
)  # fmt: skip


def run(subject: Subject, options: CheckOptions, journal: Journal) -> Answer[CheckResult]:
    """Answer `curvcli check`; see `CheckOptions`.

    Raises:
        UsageError: a rule is not understood or names what no analysis has; nothing has run by then.
    """
    seconds = parse_seconds(options.budget)
    members = list(subject.members)
    if len(members) == 1 and not members[0].made and members[0].spec == TargetSpec():
        raise UsageError(
            "nothing to check: no target is given", "name one: curvcli check model.toml"
        )
    alone = len(members) == 1
    sets = [_rules_or_problem(member, options.rules, alone, journal) for member in members]
    if options.since is not None:
        _look_back(members, sets, options.since, journal)
    path = Path(options.baseline) if options.baseline else None
    if path is None and (options.update_baseline or any(r.uses_baseline for s in sets for r in s)):
        raise UsageError(
            "a baseline is needed, but none is named", "name its file by --baseline baseline.json"
        )
    before = read_baseline(path, may_be_missing=True) if path else BaselineFile()
    if path is not None and not path.exists() and not options.update_baseline:
        journal.note(f"there is no baseline {str(path)!r}: make it by --update-baseline")
    shared = Budget(seconds, sum(len(_needed(s)) and sum(_needed(s).values()) for s in sets))
    checked: list[CheckedTarget] = []
    updated: dict[str, BaselineTarget] = {}
    renamed: list[str] = []
    keys = [key_of(m.name, path) if path else m.name for m in members]
    for member, own, key in zip(members, sets, keys, strict=True):
        if member.problem is not None:
            checked.append(_unusable(member, member.problem))
            continue
        answers = run_analyses(member, _needed(own), shared, options.cache, journal)
        for note in answers.notes:
            journal.note(note)
        entry = entry_of(key, before, path, keys) if path else None
        if entry is not None and entry != key:
            renamed.append(entry)
            journal.note(
                f"the baseline has {key} under the name {entry}, which is not there any more"
            )
        known = {f.path: f for f in before.targets[entry].figures} if entry else {}
        target = _judge(member, own, answers, known, options.confidence, options.update_baseline)
        checked.append(target)
        if options.update_baseline and all(run.error is None for run in target.analyses):
            updated[key] = _figures(target)
    if path is not None and options.update_baseline:
        write_baseline(path, updated, renamed)
        journal.note(f"figures of {len(updated)} targets were written into the baseline {path}")
    result = _result(checked, options.undecided, options.confidence, options.baseline)
    return journal.answer(result, exit_code=_conclude(journal, result))


def _rules_or_problem(
    member: Subject, given: list[str | RuleEntry], alone: bool, journal: Journal
) -> list[Rule]:
    """The rules of a target; of one among several, what is wrong with it is kept beside the others' answers."""
    if member.problem is not None:
        return []
    try:
        return _rules(member, given, journal)
    except UsageError as problem:
        if alone:
            raise
        member.problem = problem
        return []


def _unusable(member: Subject, problem: CurvError) -> CheckedTarget:
    """A target that cannot be looked at."""
    told = f"the target cannot be used: {problem.message}"
    if problem.hint:
        told += f" ({problem.hint})"
    return CheckedTarget(
        name=member.name,
        file=member.name,
        target=None,
        rules=[
            RuleOutcome(
                rule="target", severity="error", decision="error", figure=None, threshold=None, message=told, line=1
            )
        ],
        analyses=[AnalysisRun("target", 0.0, False, False, error_info(problem))],
    )  # fmt: skip


def _rules(member: Subject, given: list[str | RuleEntry], journal: Journal) -> list[Rule]:
    own: list[Any] = member.tables.get("check", {}).get("rules") or given
    entries = read_entries(own)
    if not entries:
        entries = list(DEFAULT_RULES)
        if not member.has_data:
            entries = [e for e in entries if e.rule.startswith("info.")]
            journal.note("no data is named: only the checkpoint itself is checked")
        elif member.spec.checkpoint is None:
            entries = [e for e in entries if not e.rule.startswith("info.")]
        if member.spec.shard:
            entries = _of_divided(entries, journal)
    found = [make_rule(entry) for entry in entries]
    for rule in found:
        _check_room(rule, member)
    return found


def _of_divided(entries: list[RuleEntry], journal: Journal) -> list[RuleEntry]:
    """Those of curvcli's own rules whose questions can be asked of divided weights."""
    asked = {entry.rule: make_rule(entry).analyses for entry in entries}
    not_asked = {n for names in asked.values() for n in names if not get(n).can_divide}
    if not_asked:
        journal.note(
            f"no rules about {', '.join(sorted(not_asked))}: these are not asked of weights that --shard divides"
        )
    return [entry for entry in entries if not_asked.isdisjoint(asked[entry.rule])]


def _look_back(
    members: list[Subject], sets: list[list[Rule]], since: str, journal: Journal
) -> None:
    """Give ``--since`` to `gradients`."""
    if not any("gradients" in rule.analyses for rules in sets for rule in rules):
        journal.note("--since is not looked at: no rule asks for gradients")
    for member in members:
        own = {**member.tables.get("gradients", {}), "since": since}
        member.tables = {**member.tables, "gradients": own}


def _check_room(rule: Rule, member: Subject) -> None:
    """A place in a list whose length is an option of the analysis (top, bottom) must be asked for."""
    for path in rule.leaves:
        if len(path.steps) < 2 or not isinstance(path.steps[1], int):
            continue
        name, place = str(path.steps[0]), path.steps[1]
        option = next((o for o in get(path.analysis).fields() if o.name == name), None)
        length = member.tables.get(path.analysis, {}).get(name, option.default if option else None)
        if (
            isinstance(length, int)
            and not isinstance(length, bool)
            and not -length <= place < length
        ):
            raise UsageError(
                f"the rule {rule.text!r} asks for {name}[{place}], but {path.analysis} finds {length}",
                f"set [{path.analysis}] {name} = {place + 1} in the target file",
            )


def _needed(rules: list[Rule]) -> dict[str, int]:
    """Analyses that the rules need, quick ones first, and how many rules need each."""
    counts: dict[str, int] = {}
    for rule in rules:
        for name in rule.analyses:
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: get(item[0]).needs == "objective"))


def _judge(
    member: Subject,
    rules: list[Rule],
    answers: Answers,
    known: dict[str, Figure],
    confidence: float,
    updating: bool,
) -> CheckedTarget:
    failed = {run.analysis: run.error for run in answers.runs if run.error is not None}

    def precision(name: str) -> Precision:
        target = answers.envelopes[name].target
        return Precision(confidence, target.dtype if target else None)

    outcomes = []
    for rule in rules:
        broken = next((n for n in rule.analyses if n in failed), None)
        if broken is not None:
            error = failed[broken]
            hint = f" ({error.hint})" if error and error.hint else ""
            reason = f"{broken}: {error.message}{hint}" if error else broken
            found = [Outcome("error", None, None, reason)]
        else:
            found = decide(rule, answers.envelopes, precision, known.get)
            if updating and rule.uses_baseline:
                found = [_fresh(o) for o in found]
        cause = ""
        if any(o.decision == "violation" for o in found):
            cause = cause_of(rule, answers.envelopes, member.name)
        outcomes += [_outcome(member, rule, outcome, cause) for outcome in found]
    targets = [e.target for e in answers.envelopes.values() if e.target is not None]
    fullest = max(targets, key=lambda t: t.samples is not None, default=None)
    return CheckedTarget(
        name=member.name,
        file=member.name if Path(member.name).exists() else (member.spec.checkpoint or member.name),
        target=fullest,
        rules=outcomes,
        analyses=answers.runs,
    )


def _fresh(outcome: Outcome) -> Outcome:
    """While a baseline is being made, what it does not have yet is no error."""
    if (
        outcome.decision == "error"
        and outcome.figure is not None
        and outcome.figure.value is not None
    ):
        return Outcome("skipped", outcome.figure, None, "new in the baseline")
    return outcome


def _outcome(member: Subject, rule: Rule, outcome: Outcome, cause: str) -> RuleOutcome:
    return RuleOutcome(
        rule=rule.text,
        severity=rule.entry.severity,
        decision=outcome.decision,
        figure=outcome.figure,
        threshold=outcome.threshold,
        message=described(rule.text, rule.entry.message, outcome, cause),
        line=_line(Path(member.name), rule.text),
    )


def _line(path: Path, text: str) -> int:
    """Where a rule stands in a target file; 1 if it does not."""
    if path.suffix != ".toml":
        return 1
    quoted = text.replace('"', '\\"')
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return 1
    return next((i for i, line in enumerate(lines, 1) if text in line or quoted in line), 1)


def _figures(target: CheckedTarget) -> BaselineTarget:
    figures = {r.figure.path: r.figure for r in target.rules if r.figure is not None}
    info = target.target
    return BaselineTarget(
        info.checkpoint_sha256 if info else None,
        info.data_sha256 if info else None,
        [figures[path] for path in sorted(figures)],
    )


def _result(
    checked: list[CheckedTarget], undecided: str, confidence: float, baseline: str | None
) -> CheckResult:
    rules = [rule for target in checked for rule in target.rules]

    def number(decision: str) -> int:
        return sum(rule.decision == decision for rule in rules)

    bad = any(r.decision == "violation" and r.severity == "error" for r in rules)
    count = Count(
        number("pass"), number("violation"), number("undecided"), number("error"), number("skipped")
    )
    return CheckResult(
        healthy=not bad and not count.errors,
        undecided=undecided,
        confidence=confidence,
        count=count,
        targets=checked,
        baseline=baseline,
    )


def _conclude(journal: Journal, result: CheckResult) -> int | None:
    """Findings, and how the program ends."""
    code = EXIT_OK
    for target in result.targets:
        told: set[str] = set()
        for rule in target.rules:
            severity, reason = rule.severity, why_undecidable(rule)
            if reason in told:
                continue  # one fault of the target keeps several rules from being decided
            told |= {reason} if reason else set()
            if rule.decision in ("pass", "skipped"):
                continue
            if rule.decision == "undecided":
                if result.undecided == "pass":
                    continue
                severity = "error" if result.undecided == "fail" else "warning"
            if rule.decision == "error":
                severity = "error"
            journal.find(
                replace(FINDINGS[rule.decision], severity=severity), target.name, rule.message,
                value=rule.figure.value if rule.figure and isinstance(rule.figure.value, float) else None,
                threshold=rule.threshold if isinstance(rule.threshold, float) else None,
            )  # fmt: skip
    rules = [rule for target in result.targets for rule in target.rules]
    if result.count.errors:
        code = max([run.error.exit_code for t in result.targets for run in t.analyses if run.error],
                   default=EXIT_NO_ANSWER)  # fmt: skip
    elif result.count.undecided and result.undecided == "fail":
        code = EXIT_NO_ANSWER
    if any(r.decision == "violation" and r.severity == "error" for r in rules):
        code = EXIT_VIOLATION
    return code or None  # --strict may still judge the warnings
