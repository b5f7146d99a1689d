"""Which learning rate works, in one sentence."""

from curvcli.analyses.lr.result import LrResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline
from curvcli.report.numbers import number


def headline(answer: Answer[LrResult]) -> Headline:
    """The range seen to work, the best in it, and where it ends."""
    result = answer.result
    if result.highest is None or result.lowest is None or result.best is None:
        return judged(
            answer, f"No learning rate that was tried works for {result.optimizer}.", "attention"
        )
    text = (
        f"{result.optimizer} works with learning rates from {number(result.lowest, 3)} to {number(result.highest, 3)}; "
        f"the loss falls most with {number(result.best, 3)}"
    )
    if result.fails_at is not None:
        text += f". At {number(result.fails_at, 3)} it fails"
    return judged(answer, f"{text}.")
