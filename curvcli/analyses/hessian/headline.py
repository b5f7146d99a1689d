"""What the ends of a spectrum mean for training, in one sentence."""

from curvcli.analyses.hessian.result import HessianResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.shared.spectrum.eigenpairs import rate_sentence
from curvcli.analyses.shared.spectrum.matrix_options import TITLES
from curvcli.report.data import Headline, Level
from curvcli.report.numbers import at_least, at_most, number


def headline(answer: Answer[HessianResult]) -> Headline:
    """Learning rates that follow, and whether the surface curves down anywhere; by the safe ends of intervals."""
    result = answer.result
    pairs = [*result.top, *result.bottom]
    parts = [_sharpest(result)]
    if result.matrix == "hessian":
        parts.append(_downwards(result))
    open_ = sum(not p.converged for p in pairs)
    if open_:
        done = f"{len(pairs) - open_} of {len(pairs)} eigenvalues have converged"
        left = "the others"
        if open_ == len(pairs):
            done, left = f"Not one of {len(pairs)} eigenvalues has converged", "all"
        rounding = result.status == "converged"
        why = (
            f"rounding leaves {left} open"
            if rounding
            else f"{left} take more --max-matvecs or time"
        )
        parts.append(f"{done}; {why}.")
    level: Level = "attention" if open_ else "good"
    made = result.preconditioner
    limit = made.stability_threshold if made else None
    if limit is not None and result.top and result.top[0].value - result.top[0].residual > limit:
        level = "attention"
    return judged(answer, " ".join(p for p in parts if p), level)


def _sharpest(result: HessianResult) -> str:
    if not result.top or result.order != "value":
        return ""
    low, high = result.top[0].value - result.top[0].residual, result.reach.upper
    made = result.preconditioner
    if result.matrix == "hessian":
        none = "The loss curves upwards in no direction that was found."
        return rate_sentence(low, high, result.reach.probability) or none
    if made is None or made.stability_threshold is None:
        title = TITLES[result.matrix]
        return f"The largest eigenvalue of the {title} lies between {at_least(low)} and {at_most(high)}."
    limit = made.stability_threshold
    text = f"{made.algorithm} with learning rate {number(made.learning_rate)} is stable below λ = {number(limit)}"
    if low > limit:
        ratio = at_least(low / limit, 3)
        return (
            f"{text}; the sharpest direction has at least {ratio} times that: its steps grow there."
        )
    if high < limit:
        return f"{text}; the sharpest direction has at most {at_most(high / limit, 3)} times that."
    return f"{text}; on which side of it the sharpest direction is cannot be told yet."


def _downwards(result: HessianResult) -> str:
    """Whether there is negative curvature, as far as that is certain."""
    lowest = min((p for p in [*result.top, *result.bottom]), key=lambda p: p.value)
    certain = lowest.value + lowest.residual
    if certain < 0:
        return f"Some directions curve downwards (λ of at most {at_most(certain)}): this is no minimum."
    if result.reach.lower >= 0:
        return "No direction curves downwards."
    return f"None that was found curves downwards; one with λ down to {at_least(result.reach.lower)} is not excluded."
