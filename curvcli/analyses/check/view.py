"""How the outcome of `curvcli check` is told."""

import re

from curvcli.analyses.check.decision import Outcome
from curvcli.analyses.check.result import CheckedTarget, CheckResult, RuleOutcome
from curvcli.analyses.shared.figures import Figure
from curvcli.report.data import Block, Case, Cell, Column, Measured, State, Table
from curvcli.report.head import fit_line
from curvcli.report.numbers import number

_BASES = {
    "residual": "residual",
    "standard error": "standard error",
    "interval": "interval",
    "reach": "reach",
    "rounding": "rounding",
    "exact": "exact",
    "unknown": "",
}


_SIGNS = {"<=": "le", ">=": "ge", "==": "eq", "!=": "ne", "<": "lt", ">": "gt", "*": "all"}


def described(rule: str, message: str, outcome: Outcome, cause: str = "") -> str:
    """One sentence: what was found, what it was held against, and why that is, where it is known."""
    figure = outcome.figure
    found = f"{figure.path} {_found(figure)}" if figure is not None else outcome.reason
    if figure is not None and outcome.reason:
        found += f" ({outcome.reason})"
    told = {
        "pass": f"{found}: {rule} holds",
        "violation": f"{found}: {rule} does not hold",
        "undecided": f"{found}: whether {rule} holds is undecided",
        "error": f"{rule} cannot be decided: {found}",
        "skipped": f"{rule} is skipped: {found}",
    }[outcome.decision]
    if outcome.decision != "violation":
        return told
    if cause and figure is not None and ".findings." in figure.path:
        told, cause = f"{cause} ({rule} does not hold)", ""
    told = f"{message}: {told}" if message else told
    return f"{told}. {cause[0].upper()}{cause[1:]}" if cause else told


def why_undecidable(rule: RuleOutcome) -> str:
    """What an analysis failed with, which a rule needs; empty for other outcomes."""
    if rule.decision != "error" or rule.figure is not None:
        return ""
    return rule.message.partition(" cannot be decided: ")[2].partition(": ")[2]


def _found(figure: Figure) -> str:
    if isinstance(figure.value, float):
        low, high = figure.bounds
        if figure.basis in ("exact", "rounding", "unknown"):
            return f"is {number(figure.value, 6)}"
        return f"is {number(figure.value, 6)}, within [{number(low, 6)}, {number(high, 6)}]"
    return "has no value" if figure.value is None else f"is {figure.value}"


def view(result: CheckResult) -> list[Block]:
    """A table for each target."""
    return [_table(target) for target in result.targets]


def _table(target: CheckedTarget) -> Table:
    runs = ", ".join(
        f"{run.analysis} ({'cached' if run.cached else f'{run.seconds:.1f} s'})"
        for run in target.analyses
    )
    return Table(
        target.name,
        (
            Column("", numeric=False),
            Column("rule", numeric=False, rank=0, folds=True),
            Column("found", rank=0),
            Column("certain within"),
            Column("by", numeric=False, rank=2),
        ),
        [_row(rule) for rule in target.rules],
        " ".join(filter(None, (fit_line(target.target), f"Analyses: {runs}"))),
    )


def _row(rule: RuleOutcome) -> tuple[Cell, ...]:
    figure = rule.figure
    marks: dict[str, State] = {
        "pass": State("holds", "good"),
        "violation": {"error": State("VIOLATED", "bad"), "note": State("noted", "good")}.get(
            rule.severity, State("violated (warning)", "attention")
        ),
        "undecided": State("undecided", "attention"),
        "error": State("no answer", "bad"),
        "skipped": State("skipped", "attention"),
    }
    mark = marks[rule.decision]
    if figure is None:
        return (mark, rule.rule, None, None, "")
    name = (
        rule.rule.replace("[*]", f"[{_place(figure.path)}]", 1) if "[*]" in rule.rule else rule.rule
    )
    low, high = figure.bounds
    within = None
    if isinstance(figure.value, float) and figure.basis not in ("exact", "unknown"):
        within = f"[{number(low, 6)}, {number(high, 6)}]"
    return (mark, name, _cell(figure), within, _BASES[figure.basis])


def _place(path: str) -> str:
    match = re.search(r"\[(\d+)\]", path)
    return match[1] if match else "*"


def _cell(figure: Figure) -> Cell:
    if isinstance(figure.value, float):
        low, high = figure.bounds
        if figure.basis == "residual":
            return Measured(figure.value, (high - low) / 2)
        return number(figure.value, 6)
    return figure.value


def _identifier(rule: str) -> str:
    """``hessian.top.0.value-lt-50``: letters, digits, dots and dashes."""
    text = rule
    for sign, word in _SIGNS.items():
        text = text.replace(sign, f" {word} ")
    return re.sub(r"[^A-Za-z0-9.]+", "-", re.sub(r"\[(\w+|\*)\]", r".\1", text)).strip("-")


def cases(result: CheckResult) -> list[Case]:
    """One case for each rule and target."""
    found = []
    for target in result.targets:
        seconds = sum(run.seconds for run in target.analyses) / max(1, len(target.rules))
        for rule in target.rules:
            counts = {
                "violation": rule.severity == "error",
                "undecided": result.undecided == "fail",
                "error": True,
            }.get(rule.decision, False)
            status = rule.decision
            if status == "undecided" and result.undecided == "pass":
                status = "pass"
            found.append(
                Case(
                    suite=target.name,
                    name=rule.rule if rule.figure is None or "[*]" not in rule.rule
                    else f"{rule.rule} ({rule.figure.path})",
                    rule=_identifier(rule.rule),
                    status=status,
                    severity=rule.severity,
                    message=rule.message,
                    path=target.file,
                    line=rule.line,
                    seconds=seconds,
                    counts=counts,
                )
            )  # fmt: skip
    return found
