"""How far the second-order model can be trusted, in one sentence."""

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.shared.spectrum.eigenpairs import rate_sentence
from curvcli.analyses.taylor.result import Direction, TaylorResult
from curvcli.report.data import Headline
from curvcli.report.numbers import at_least, at_most

# Directions by their names in the options.
_NAMES = {
    "gradient": "the gradient",
    "top": "the direction of largest curvature",
    "bottom": "the direction of smallest curvature",
    "random": "a random direction",
    "newton": "the Newton step",
    "newton-npc": "the Newton step with negative curvature",
    "saddle-free": "the saddle-free Newton step",
    "gauss-newton": "the Gauss-Newton step",
    "lbfgs": "the L-BFGS step",
}


def headline(answer: Answer[TaylorResult]) -> Headline:
    """Learning rates that are certain, and the distance to which the model holds along the first direction."""
    result = answer.result
    low = result.lambda_max - result.lambda_max_residual
    parts = [rate_sentence(low, result.reach.upper, result.reach.probability)]
    if result.directions:
        first = result.directions[0]
        parts.append(_trusted(first, result.trust))
    return judged(answer, " ".join(p for p in parts if p))


def _trusted(first: Direction, trust: float) -> str:
    """How far the model is right; at no distance that was looked at: rounding may be why."""
    where = f"Along {_called(first.name)} the quadratic model"
    if first.trust_radius > 0:
        far = f"{'at least ' if first.trusted_to_the_end else ''}{at_least(first.trust_radius, 3)}"
        return f"{where} is right to {trust:.0%} up to a distance of {far}."
    least = at_most(first.points[0].radius, 2)
    return (
        f"{where} is off by more than {trust:.0%} already at a distance of {least}, the smallest looked at: the loss "
        "bends there, or rounding hides it (--dtype float64 tells which)."
    )


def _called(name: str) -> str:
    """A direction in words."""
    if name.startswith("to "):
        return f"the way {name}"
    return _NAMES.get(name, name)
