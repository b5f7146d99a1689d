"""Which of two checkpoints is better and which is sharper, in one sentence."""

from curvcli.analyses.compare.result import CompareResult, FigureComparison, Sampling
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline, Level, Measured
from curvcli.report.numbers import measured, number

# A ratio whose ends differ by less is said as one number.
_SURE = 0.02


def headline(answer: Answer[CompareResult]) -> Headline:
    """Loss by paired samples, sharpness where the intervals are apart."""
    result = answer.result
    if result.sampling is not None:
        return judged(answer, _beyond(result.sampling, result.identical))
    if result.identical:
        kind = f" in {result.a.dtype}" if result.a is not None and result.a.dtype else ""
        same = f"The checkpoints are identical{kind}: every weight is the same to the bit."
        return judged(answer, same)
    loss, level = _better(result)
    return judged(answer, " ".join(part for part in (loss, _sharper(result)) if part), level)


def _better(result: CompareResult) -> tuple[str, Level]:
    pair = result.paired
    if pair is None:
        return "The losses are on different samples: which is better cannot be told.", "attention"
    if pair.standard_error is None:
        return (
            "Which is better cannot be told: the data has too few parts for an error.",
            "attention",
        )
    told = measured(Measured(abs(pair.difference), pair.standard_error))
    if pair.difference == 0 == pair.standard_error:
        return "Neither is better on this data: the losses of all samples are the same.", "good"
    if pair.better is None:
        return (
            f"Neither is better on this data: the losses differ by {told}, within three standard errors.",
            "good",
        )
    return (
        f"{pair.better.upper()} is better on this data: its loss is lower by {told} (standard error).",
        "good",
    )


def _sharper(result: CompareResult) -> str:
    row = next((r for r in result.figures if r.path == "hessian.top[0].value"), None)
    if row is None or row.beyond is None:
        return ""
    if not row.beyond:
        told = "this data tells" if row.by == "data" else "the intervals tell"
        return f"Neither is sharper, as far as {told}."
    sharp, flat, name, other = (row.b, row.a, "B", "A") if _above(row) else (row.a, row.b, "A", "B")
    (low, high), (least, most) = sharp.bounds, flat.bounds
    if least <= 0:
        return f"{name} is sharper than {other}."
    ends = low / most, high / least
    times = number(ends[0], 3)
    if ends[1] > (1 + _SURE) * ends[0]:
        times = f"at least {times}"
    return f"{name} is {times} times as sharp as {other}."


def _above(row: FigureComparison) -> bool:
    return row.b.bounds[0] > row.a.bounds[1]


def _beyond(found: Sampling, identical: bool) -> str:
    """What differs between the data sets beyond sampling."""
    told = []
    for name, part in (("loss", found.loss), ("λ_max", found.lambda_max)):
        if part is None:
            continue
        error = "" if part.standard_error is None else f" ± {number(part.standard_error, 2)}"
        told.append(f"{name} by {number(part.difference, 3)}{error}, {_JUDGED[part.beyond]}")
    slope = found.gradient
    expected = "" if slope.expected is None else f" (sampling makes {number(slope.expected, 3)})"
    told.append(f"the gradient by {number(slope.distance, 3)}{expected}, {_JUDGED[slope.beyond]}")
    what = "The same weights on" if identical else "Other weights on"
    return f"{what} other data: B differs from A in {'; '.join(told)}."


_JUDGED = {True: "beyond sampling", False: "within sampling", None: "of unknown error"}
