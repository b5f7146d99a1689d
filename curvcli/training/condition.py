"""When a run is to stop or a warning is due: a rule of `check`, with the learning rate by name."""

from collections.abc import Mapping
from typing import Any

from curvcli.analyses.check.decision import decide
from curvcli.analyses.check.rules import RuleEntry, make_rule
from curvcli.analyses.shared.figures import Precision
from curvcli.errors import UsageError
from curvcli.report.data import Envelope


class Condition:
    """A rule that is waited for: ``hessian.top[0].value > 2/lr``.

    Args:
        text: of the rule; ``lr`` is the optimizer's largest learning rate.
        analyses: that are measured.
        has_rate: whether there is an optimizer.

    Raises:
        UsageError: it is not understood, or needs what is not measured.
    """

    def __init__(self, text: str, analyses: tuple[str, ...], has_rate: bool) -> None:
        self.text = text
        rule = make_rule(text, {"lr": 1.0} if has_rate else None)
        if rule.uses_baseline:
            raise UsageError(f"{text!r}: there is no baseline in a training loop", "compare with a number")  # fmt: skip
        missing = [name for name in rule.analyses if name not in analyses]
        if missing:
            raise UsageError(
                f"{text!r} needs {', '.join(missing)}, which is not measured",
                f"analyses={[*analyses, *missing]}",
            )

    def holds(self, answers: Mapping[str, Envelope[Any]], rate: float | None) -> bool:
        """Whether it certainly holds: by the whole interval of each figure."""
        entry = RuleEntry(self.text, optional=True)
        rule = make_rule(entry, None if rate is None else {"lr": rate})

        def precision(name: str) -> Precision:
            target = answers[name].target
            return Precision(dtype=target.dtype if target else None)

        outcomes = decide(rule, dict(answers), precision, lambda _: None)
        return any(outcome.decision == "pass" for outcome in outcomes)
