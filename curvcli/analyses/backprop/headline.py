"""Whether the backward pass is right, in one sentence."""

from curvcli.analyses.backprop.result import BackpropResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline


def headline(answer: Answer[BackpropResult]) -> Headline:
    """Right, wrong and where, or not decided."""
    result = answer.result
    open_ = sum(not s.decided for s in result.slopes)
    tensors = len(result.slopes)
    if open_:
        text = (
            f"{tensors - open_} of {tensors} gradients are right; {open_} cannot be decided here, where finite "
            "differences of several lengths disagree."
        )
        return judged(answer, text, "attention" if result.passed else "bad")
    if not result.passed:
        return judged(answer, "The backward pass is wrong: see the findings.", "bad")
    if not answer.complete:
        are = (
            "tensor that was looked at is"
            if tensors == 1
            else f"{tensors} tensors that were looked at are"
        )
        return judged(answer, f"No wrong gradient so far: the {are} right.", "attention")
    return judged(
        answer,
        f"The backward pass is right: the gradients of all {tensors} tensors are those of the loss.",
    )
