"""What happened over the training run, in one sentence."""

from msgspec.structs import replace

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.track.result import TrackPoint, TrackResult
from curvcli.report.data import Headline
from curvcli.report.numbers import number


def headline(answer: Answer[TrackResult]) -> Headline:
    """Loss and sharpness from the first checkpoint to the last; or the worst that was found."""
    points = [p for p in answer.result.points if p.loss is not None and p.lambda_max is not None]
    if len(points) < 2:
        return judged(answer, "One checkpoint gives no development.", "attention", replaced=True)
    first, last = points[0], points[-1]
    text = f"From {_name(first)} to {_name(last)} the loss goes from {number(first.loss, 3)} to {number(last.loss, 3)}"
    if last.at_chance:
        text += ", no better than a constant: the network has not learned"
        return judged(answer, f"{text}.", "attention", replaced=True)
    peak = _peak(points)
    told = judged(answer, f"{text}, and {_sharpness(first, last)}{peak}.", replaced=True)
    alive = all(f.severity != "error" for f in answer.findings)
    if peak and alive and any(f.severity == "warning" for f in answer.findings):
        return replace(
            told,
            sentence=f"{told.sentence} Sharpness{peak.replace(', with a peak of', ' peaks at')}.",
        )
    return told


def _name(point: TrackPoint) -> str:
    return point.checkpoint if point.step is None else f"step {point.step}"


def _sharpness(first: TrackPoint, last: TrackPoint) -> str:
    """How λ_max moved, where the reaches are apart."""
    before, after = first.lambda_max, last.lambda_max
    assert before is not None
    assert after is not None
    told = f"the sharpness from {number(before.value, 3)} to {number(after.value, 3)}"
    if first.reach is None or last.reach is None:
        return told
    apart = (
        after.value - after.residual > first.reach.upper
        or before.value - before.residual > last.reach.upper
    )
    return told if apart else "the sharpness stays as it is, as far as its intervals tell"


def _peak(points: list[TrackPoint]) -> str:
    """Where λ_max was larger than at both ends, beyond doubt."""
    ends = [p.reach.upper for p in (points[0], points[-1]) if p.reach is not None]
    top = max(points, key=lambda p: p.lambda_max.value if p.lambda_max else 0.0)
    value = top.lambda_max
    if value is None or len(ends) < 2 or value.value - value.residual <= max(ends):
        return ""
    return f", with a peak of {number(value.value, 3)} at {_name(top)}"
