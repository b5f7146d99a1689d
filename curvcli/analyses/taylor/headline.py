"""How far the second-order model can be trusted, in one sentence."""

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.shared.spectrum.eigenpairs import rate_sentence
from curvcli.analyses.taylor.result import TaylorResult
from curvcli.report.data import Headline
from curvcli.report.numbers import at_least


def headline(answer: Answer[TaylorResult]) -> Headline:
    """Learning rates that are certain, and the distance to which the model holds along the first direction."""
    result = answer.result
    low = result.lambda_max - result.lambda_max_residual
    parts = [rate_sentence(low, result.reach.upper, result.reach.probability)]
    if result.directions:
        first = result.directions[0]
        far = f"{'at least ' if first.trusted_to_the_end else ''}{at_least(first.trust_radius, 3)}"
        right = f"the quadratic model is right to {result.trust:.0%}"
        name = "the gradient" if first.name == "gradient" else first.name
        parts.append(f"Along {name} {right} up to a distance of {far}.")
    return judged(answer, " ".join(p for p in parts if p))
