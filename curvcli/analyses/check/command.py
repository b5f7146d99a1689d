"""The options of `curvcli check`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.check.headline import headline
from curvcli.analyses.check.result import CheckResult
from curvcli.analyses.check.rules import RuleEntry
from curvcli.analyses.check.view import cases, view
from curvcli.analyses.shared.question import Question


class CheckOptions(Struct, frozen=True, kw_only=True):
    """Hold checkpoints against rules; exits with 1 when one is violated. For CI.

    A rule compares a figure of any command with a threshold: hessian.top[0].value < 50, saddle.verdict !=
    "strict-saddle", hessian.top[0].value <= 1.2 * baseline. Figures have errors: a rule holds for certain, is violated
    for certain, or is undecided. Exit codes: 0 the rules hold, 1 a violation, 2 bad input, 3 no answer.
    """

    rules: Annotated[
        list[str | RuleEntry],
        "Rule, e.g. 'hessian.top[0].value < 50'; repeatable. Default: those of the target file, else of curvcli.",
    ] = []
    skip_others: Annotated[
        bool,
        "Leave out .toml files that are no target files (they name no checkpoint and no model), for hooks.",
    ] = False
    since: Annotated[
        str | None,
        "Earlier checkpoint: 'gradients' also finds parameters that have not moved since.",
    ] = None
    undecided: Annotated[
        Literal["fail", "warn", "pass"],
        "What a rule does whose threshold lies within the error: fail exits with 3.",
    ] = "warn"
    confidence: Annotated[
        float, Meta(gt=0, lt=1, description="Of the intervals of numbers with a standard error.")
    ] = 0.999
    baseline: Annotated[
        str | None, "File of figures that rules compare with by the word 'baseline'."
    ] = None
    update_baseline: Annotated[bool, "Write the figures of this run into that file."] = False
    budget: Annotated[str | None, "Time to spend in all, e.g. 60s, shared out over rules."] = None
    cache: Annotated[bool, "Keep answers, and use them while nothing has changed."] = True


QUESTION = Question(
    "check", CheckOptions, CheckResult, view, headline, targets="many", cases=cases, divides=()
)
