"""What the loss along directions means, in one sentence."""

from curvcli.analyses.landscape.result import Barrier, LandscapeResult, Quadratic
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline, Level
from curvcli.report.numbers import at_least, at_most

# Standard errors of the safe end of a difference.
_CERTAIN = 3.0
# Points that a bend can be seen from.
_FEWEST = 3


def headline(answer: Answer[LandscapeResult]) -> Headline:
    """Barrier, lower loss or bowl, and how far the quadratic model is right; safe ends only."""
    result = answer.result
    if result.evaluations < _FEWEST:
        told = "Fewer than three points were looked at"
        return judged(
            answer, f"{told}: how the loss bends around the weights is not known.", "attention"
        )
    along = " and ".join(dict.fromkeys(_called(a.name) for a in result.axes))
    parts: list[str] = []
    level: Level = "good"
    if result.path:
        share = min(1.0, sum(result.variance_shares))
        parts.append(f"{share:.0%} of the variance of the series lies along {along}.")
    if result.barriers:
        worst = max(result.barriers, key=_size)
        parts.append(_barrier(worst))
        if worst.height is None or _safe(worst) > 0:
            level = "attention"
    low, quadratic = result.lowest, result.quadratic
    if low is not None and not result.path:
        error = _CERTAIN * (low.change_standard_error or 0.0) + low.change_residual
        if low.lower and -low.change > error:
            level = "attention"
            parts.append(
                f"Along {along} the weights are not the lowest point: {at_least(-low.change - error, 2)} lower at "
                f"least is the loss at a distance of {at_least(low.distance, 3)}."
            )
        elif low.lower:
            parts.append(
                f"Along {along} no point is lower than the weights by more than sampling explains."
            )
        else:
            parts.append(f"Along {along} no point looked at is lower than the weights.")
    if not result.path:
        parts.append(_shape(result))
    if quadratic is not None:
        parts.append(_trusted(quadratic))
    return judged(answer, " ".join(parts), level)


def _called(name: str) -> str:
    """A direction in words."""
    kind = name.split(" ", maxsplit=1)[0]
    words = {
        "random": "random directions" if name != kind else "a random direction",
        "eigen": "the directions of largest curvature"
        if name != kind
        else "the direction of largest curvature",
        "bottom": "the direction of smallest curvature",
        "gradient": "the gradient",
        "adam": "the step of Adam",
        "to": f"the way {name}",
        "component": "its principal directions",
    }
    return words.get(kind, name)


def _trusted(quadratic: Quadratic) -> str:
    if quadratic.wrong_from is None:
        far = f"as far as was looked, {at_least(quadratic.right_to, 2)}"
    elif quadratic.right_to:
        far = f"up to a distance of {at_least(quadratic.right_to, 2)}"
    else:
        return f"The quadratic model is wrong already at a distance of {at_most(quadratic.wrong_from, 2)}."
    return f"The quadratic model is right to {quadratic.trust:.0%} {far}."


def _shape(result: LandscapeResult) -> str:
    bend = result.bend
    if bend.convex:
        return "The loss is convex there as far as seen."
    above = at_least(bend.above_chord - bend.above_chord_residual, 2)
    return f"It is not convex: one point lies at least {above} above the straight line between two others."


def _size(barrier: Barrier) -> float:
    return float("inf") if barrier.height is None else barrier.height


def _safe(barrier: Barrier) -> float:
    """The least height that is certain."""
    error = _CERTAIN * (barrier.height_standard_error or 0.0) + barrier.height_residual
    return (barrier.height or 0.0) - error


def _barrier(barrier: Barrier) -> str:
    between = f"{barrier.a} and {barrier.b}"
    if barrier.height is None:
        return f"Between {between} the loss is not finite."
    if _safe(barrier) > 0:
        return (
            f"A barrier of at least {at_least(_safe(barrier), 2)} separates {between}, at "
            f"{barrier.position:.0%} of the way."
        )
    error = _CERTAIN * (barrier.height_standard_error or 0.0) + barrier.height_residual
    return (
        f"No barrier between {between} beyond the errors: the loss lies at most "
        f"{at_most(barrier.height + error, 2)} above the straight line."
    )
