"""What is in a checkpoint, in one sentence."""

from curvcli.analyses.info.result import InfoResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline


def headline(answer: Answer[InfoResult]) -> Headline:
    """Size, and whether all numbers are finite."""
    result = answer.result
    text = f"{result.parameters:,} numbers in {len(result.tensors):,} tensors"
    if result.nonfinite is None:
        return judged(answer, f"{text}; they were not read.")
    return judged(answer, f"{text}, all finite." if result.nonfinite == 0 else f"{text}.")
