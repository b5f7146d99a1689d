"""How far the second-order model can be trusted, in one sentence."""

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.shared.spectrum.eigenpairs import rate_sentence
from curvcli.analyses.taylor.result import TaylorResult
from curvcli.report.data import Headline
from curvcli.report.numbers import at_least

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
        far = f"{'at least ' if first.trusted_to_the_end else ''}{at_least(first.trust_radius, 3)}"
        right = f"the quadratic model is right to {result.trust:.0%}"
        parts.append(f"Along {_called(first.name)} {right} up to a distance of {far}.")
    return judged(answer, " ".join(p for p in parts if p))


def _called(name: str) -> str:
    """A direction in words."""
    if name.startswith("to "):
        return f"the way {name}"
    return _NAMES.get(name, name)
