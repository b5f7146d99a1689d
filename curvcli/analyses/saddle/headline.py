"""What kind of point the weights sit at, for somebody who trains."""

from curvcli.analyses.saddle.result import SaddleResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.shared.verdict import Verdict
from curvcli.report.data import Headline, Level
from curvcli.report.numbers import at_most

_MEANING: dict[Verdict, tuple[str, Level]] = {
    "not-stationary": (
        "Training has not ended here: the gradient still points downhill",
        "attention",
    ),
    "strict-saddle": (
        "A saddle point: the gradient vanishes, but in some directions the loss falls on. Training stalls here",
        "attention",
    ),
    "local-minimum": ("A minimum: training has converged, every direction leads uphill", "good"),
    "local-maximum": ("A maximum: every direction leads downhill", "bad"),
    "flat-minimum": (
        "A flat minimum: training has converged, no direction leads downhill beyond rounding",
        "good",
    ),
    "inconclusive": ("Not decided: what was measured proves no kind of point", "attention"),
}
_REGIONS = {
    "convex": "the surface around it curves upwards only",
    "concave": "the surface around it curves downwards only",
    "indefinite": "the surface around it curves up in some directions and down in others",
    "flat": "the surface around it is flat",
}


def headline(answer: Answer[SaddleResult]) -> Headline:
    """The kind, with the probability where it rests on the reach, and what would settle an open one."""
    result = answer.result
    text, level = _MEANING[result.verdict]
    if result.verdict == "strict-saddle" and result.escape is not None and not result.escape.falls:
        text = (
            "A saddle point by its curvature: the gradient vanishes and some directions curve downwards, but the loss "
            "did not fall on a walk along the lowest one"
        )
    if result.verdict in ("local-minimum", "local-maximum", "flat-minimum"):
        text += f" (probability {result.probability:g})"
    elif result.verdict == "not-stationary" and result.newton_promise is not None:
        text += f"; a Newton step still promises up to {at_most(100 * result.newton_promise, 2)} % of the loss"
    elif result.verdict == "not-stationary" and result.region in _REGIONS:
        text += f"; {_REGIONS[result.region]}"
    if result.more_products:
        text += f". About {result.more_products} more products would settle it (--max-matvecs)"
    return judged(answer, f"{text}.", level)
