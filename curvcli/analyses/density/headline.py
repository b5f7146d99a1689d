"""How the curvature is spread over the directions, in one sentence."""

import math

from curvcli.analyses.density.result import DensityResult, Share
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline
from curvcli.report.numbers import at_most, number

# Percentage points from which on an interval alone says too little.
_WIDE = 25
# An upper end above this says nothing.
_SAYS = 90


def headline(answer: Answer[DensityResult]) -> Headline:
    """Flat, negative and outlying directions, as far as the moments prove them."""
    result = answer.result
    apart = len(result.outliers)
    text = (
        f"Of {result.parameters:,} directions {_between(result.mass_at_zero)} are flat (|λ| up to "
        f"{number(result.zero, 3)}), {_between(result.mass_below_zero)} curve downwards"
    )
    if apart:
        text += f", and {'at least ' if result.more_outliers else ''}{apart} stand{'s' if apart == 1 else ''} apart"
    return judged(answer, f"{text}.")


def _between(share: Share) -> str:
    low, high = (100 * min(1.0, max(0.0, end)) for end in share.interval)
    if high == 0:
        return "none"
    if high < 1:
        return f"less than {at_most(high, 1)} %"
    if f"{low:.0f}" == f"{high:.0f}":
        return f"{low:.0f} %"
    certain = f"{math.floor(low)} to {math.ceil(high)} %"
    if high - low < _WIDE:
        return certain
    ends = [f"at least {math.floor(low)} %"] if low >= 1 else []
    ends += [f"at most {math.ceil(high)} %"] if high <= _SAYS else []
    return f"an estimated {100 * share.value:.0f} % ({' and '.join(ends) or 'a rough figure'})"
