"""Which step lowers the loss most, in one sentence."""

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.step.result import StepResult
from curvcli.report.data import Headline
from curvcli.report.numbers import number


def headline(answer: Answer[StepResult]) -> Headline:
    """The best method and its gain."""
    result = answer.result
    if result.best is None:
        return judged(answer, "No step of any method lowers the loss.", "attention")
    change = next(m.true_change for m in result.methods if m.name == result.best)
    text = (
        f"One {result.best} step lowers the loss most: from {number(result.loss)} to "
        f"{number(result.loss + (change or 0.0))}"
    )
    if result.as_good:
        text += f"; {', '.join(result.as_good)} as much, to rounding"
    return judged(answer, f"{text}.")
