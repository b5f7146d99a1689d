"""How strongly the output answers to its input, in one sentence."""

from curvcli.analyses.jacobian.result import JacobianResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline
from curvcli.report.numbers import about, at_most

# Figures that differ by less are said as one.
_SAME = 1.01
# A gain of rounding of float32.
_NOTHING = 1e-6


def headline(answer: Answer[JacobianResult]) -> Headline:
    """Largest gain over the samples, the sample it belongs to, and how even the directions are."""
    result = answer.result
    if not result.samples:
        return judged(answer, _kernel(result))
    gain, typical = result.spectral.maximum, result.spectral.median
    if gain is None or typical is None:
        return judged(answer, "The Jacobian is not finite.", "bad")
    text = f"A small change of the {result.wrt} changes the {result.of} by up to {at_most(gain, 3)} times its size"
    if len(result.samples) > 1 and gain > _SAME * typical:
        text += f" (sample {result.worst[0]}; {about(typical)} times in the median)"
    if result.condition is not None and (result.condition.median or 0.0) > _SAME:
        ratio = about(result.condition.median or 0.0)
        text += f"; in the median the most sensitive direction counts {ratio} times as much as the least"
    if gain < _NOTHING:
        return judged(
            answer, f"The {result.of} hardly depends on the {result.wrt}. {text}.", "attention"
        )
    return judged(answer, f"{text}.")


def _kernel(result: JacobianResult) -> str:
    kernel = result.ntk
    if kernel is None or not kernel.eigenvalues or kernel.eigenvalues[0].value is None:
        return "No Jacobian was measured."
    largest = about(kernel.eigenvalues[0].value)
    rank = (
        "" if kernel.rank is None else f", rank {kernel.rank} of {kernel.samples * kernel.outputs}"
    )
    return f"The tangent kernel's largest eigenvalue is {largest}{rank}."
