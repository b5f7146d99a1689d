"""How much the loss rises around the weights, in one sentence."""

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.sharpness.result import SharpnessResult, WorstCase
from curvcli.linalg.statistics.student import quantile
from curvcli.report.data import Headline, Measured
from curvcli.report.numbers import at_least, measured, number

# Of the intervals of means over draws.
_CONFIDENCE = 0.95


def headline(answer: Answer[SharpnessResult]) -> Headline:
    """Worst case and noise that the weights stand, plain and in proportion to the weights."""
    result, parts = answer.result, []
    if result.worst is not None:
        parts.append(f"{_worst(result.worst)} within a distance of {result.worst.rho:g}.")
    if result.worst_adaptive is not None:
        told = _worst(result.worst_adaptive, "it")
        parts.append(
            f"Relative to the size of the weights (adaptive, the same for rescaled layers), {told} "
            f"within {result.worst_adaptive.rho:g}."
        )
    width = result.pac_bayes
    if width is not None and width.value is not None and width.standard_error is not None:
        spread = quantile(_CONFIDENCE, max(1, width.degrees_of_freedom)) * width.standard_error
        parts.append(
            f"Gaussian noise of σ from {number(max(0.0, width.value - spread), 2)} to "
            f"{number(width.value + spread, 2)} on every weight raises it by {width.rise:g}."
        )
    if not parts:
        parts = _others(result)
    return judged(answer, " ".join(parts))


def _others(result: SharpnessResult) -> list[str]:
    """Measures that are said where none of the first was asked for, in their standard errors."""
    told = (
        (result.average, "On average the loss rises by {} under Gaussian noise."),
        (result.relative_flatness, "Relative flatness is {}; small is flat."),
        (result.fisher_rao, "The Fisher-Rao norm is {}."),
        (result.m_sharpness, "One step of SAM on a shard of the data raises its loss by {}."),
    )
    found = [
        text.format(measured(Measured(measure.value, measure.standard_error)))
        for measure, text in told
        if measure is not None
    ]
    return found or ["Nothing was measured."]


def _worst(worst: WorstCase, what: str = "The loss") -> str:
    if worst.found is None:
        return f"{what} is not finite everywhere"
    low = worst.found - worst.found_residual
    if low <= 0:
        return f"{what} was not seen to rise, beyond rounding,"
    return f"{what} rises by at least {at_least(low, 2)} at worst"
