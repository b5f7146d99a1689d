"""NaN and Inf: in the data, in the layers on the way forward, in the gradients on the way back, in the loss."""

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from curvcli.analyses.gradients.result import GradientsResult
from curvcli.report.data import Finding

MakeFinding = Callable[[str, str, float | None, str], Finding]
"""(rule, subject, value, message) -> the finding."""


def nonfinite_findings(
    result: GradientsResult,
    limit: float,
    fault_in_data: str | None,
    finding: MakeFinding,
    in_double: bool = False,
) -> Iterator[Finding]:
    """Where the first NaN or Inf is.

    Args:
        result: what was measured.
        limit: of values that are not finite.
        fault_in_data: which input is not finite; a layer that multiplies with it is not to blame.
        finding: makes one.
        in_double: whether float64 is used already.
    """
    finer = "" if in_double else "--dtype float64, "
    layers = result.layers
    finite = result.loss is not None and not any(s.nonfinite_gradient > limit for s in layers)
    if fault_in_data is not None:
        message = f"in the data, {fault_in_data}: no layer is to blame; clean the data"
        if finite:
            message += (
                " (the network turns it into something finite, so that nothing else shows it)"
            )
        found = finding("nonfinite", "data", None, message)
        # Networks may be made for gaps.
        yield replace(found, severity="warning") if finite else found
        return
    if finite:
        return  # masked on purpose: -inf before a softmax leaves loss and gradients finite
    first = next((s for s in layers if s.nonfinite > limit), None)
    if first is not None:
        later = sum(s.nonfinite > limit for s in layers) - 1
        more = f"; {later} later layers follow" if later else ""
        yield finding(
            "nonfinite", first.name, float(first.nonfinite),
            f"{first.nonfinite} NaN or Inf first appear in the output of {first.name} ({first.kind}){more}: "
            f"look at its weights ('curvcli info') and for overflow ({finer}normalisation)",
        )  # fmt: skip
        return
    backward = next((s for s in reversed(layers) if s.nonfinite_gradient > limit), None)
    if backward is not None:
        yield finding(
            "nonfinite", backward.name, float(backward.nonfinite_gradient),
            f"{backward.nonfinite_gradient} NaN or Inf first appear in the gradient at {backward.name} "
            f"({backward.kind}), on the way back; the activations are finite: look for a square root, norm "
            "or logarithm at zero, or overflow",
        )  # fmt: skip
    elif result.loss is None:
        yield finding(
            "nonfinite", "loss", None,
            "the loss is NaN or Inf although every activation and gradient is finite: it overflows "
            f"({finer}look at the size of the outputs), or it takes a logarithm of zero",
        )  # fmt: skip
