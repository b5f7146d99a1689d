"""What the sums over a spectrum say, in one sentence."""

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.trace.result import Estimate, TraceResult
from curvcli.report.data import Headline, Measured
from curvcli.report.numbers import measured, number

# An estimate whose error is a larger share of it says hardly more than its sign.
_VAGUE = 1 / 3


def headline(answer: Answer[TraceResult]) -> Headline:
    """How much curvature there is, and how many directions share it."""
    result = answer.result
    share, trace = result.participation_ratio, result.trace
    if trace.standard_error is None:
        told = "The curvature's sum is not known yet: the run ended before random vectors told its error"
        return judged(answer, f"{told}.", "attention")
    if trace.standard_error > _VAGUE * abs(trace.value):
        told = f"The curvature's sum is not known yet: {_within(trace)} (the trace). More --max-matvecs tell it"
        return judged(answer, f"{told}.", "attention")
    text = f"The curvature sums to {_within(trace)} (the trace); "
    if share.value >= 1:
        text += f"about {_within(share)} of {result.parameters:,} directions share it."
    else:
        text += (
            f"upwards and downwards cancel, beside a Frobenius norm of {_within(result.frobenius)}."
        )
    return judged(answer, text)


def _within(estimate: Estimate) -> str:
    """The estimate with its standard error, where it has one."""
    error = estimate.standard_error
    if error is None:
        return f"{number(estimate.value, 3)} (error unknown)"
    if error <= 1e-3 * abs(estimate.value):
        return number(estimate.value, 3)
    return measured(Measured(estimate.value, error))
