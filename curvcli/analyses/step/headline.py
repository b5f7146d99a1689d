"""Which step lowers the loss most, in one sentence."""

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.step.result import StepResult
from curvcli.report.data import Headline
from curvcli.report.numbers import number

# Methods by their names in the literature.
_NAMES = {
    "gradient": "gradient",
    "newton": "Newton",
    "newton-npc": "Newton with negative curvature",
    "saddle-free": "saddle-free Newton",
    "gauss-newton": "Gauss-Newton",
    "lbfgs": "L-BFGS",
}


def headline(answer: Answer[StepResult]) -> Headline:
    """The best method and its gain."""
    result = answer.result
    if result.best is None:
        tried = ", ".join(_NAMES.get(m.name, m.name) for m in result.methods)
        sentence = "No step of any method lowers the loss."
        if not answer.complete:
            sentence = f"No step that was computed lowers the loss: {tried}."
        return judged(answer, sentence if tried else "No step was computed.", "attention")
    best = next(m for m in result.methods if m.name == result.best)
    change = best.true_change
    before, after = number(result.loss), number(result.loss + (change or 0.0))
    if before == after:
        return judged(
            answer, f"One step of any method leaves the loss at {before}, to four digits."
        )
    text = f"One {_NAMES.get(result.best, result.best)} step lowers the loss most: from {before} to {after}"
    if result.as_good:
        others = ", ".join(_NAMES.get(name, name) for name in result.as_good)
        text += f"; up to rounding the same: {others}"
    if best.heads_for_saddle:
        text += "; but along some directions it climbs, towards a saddle point"
    return judged(answer, f"{text}.")
