"""What happened over the training run, in one sentence."""

from msgspec.structs import replace

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.analyses.track.result import TrackPoint, TrackResult
from curvcli.report.data import Headline
from curvcli.report.numbers import number

# So many runs are told of in the first line.
_RUNS = 3
_ALONE = (
    "One checkpoint gives no development: name the directory of a run, or several checkpoints, "
    "behind the target file."
)


def headline(answer: Answer[TrackResult]) -> Headline:
    """Loss and sharpness from the first checkpoint of each run to its last; or the worst that was found."""
    points = [p for p in answer.result.points if p.loss is not None and p.lambda_max is not None]
    runs = [[p for p in points if p.run == run] for run in dict.fromkeys(p.run for p in points)]
    known = [run for run in runs if len(run) > 1]
    if not known:
        return judged(answer, _ALONE, "attention", replaced=True)
    told = [_development(run, f"{run[0].run}: from" if len(runs) > 1 else "From") for run in known]
    rest = f"; {len(told) - _RUNS} more runs in the table" if len(told) > _RUNS else ""
    text = "; ".join(told[:_RUNS]) + rest
    if all(run[-1].at_chance for run in known):
        return judged(answer, f"{text}.", "attention", replaced=True)
    found = judged(answer, f"{text}.", replaced=True)
    peaks = [(run[0].run, peak) for run in known if (peak := _peak(run))]
    alive = all(f.severity != "error" for f in answer.findings)
    if peaks and alive and any(f.severity == "warning" for f in answer.findings):
        run, peak = peaks[0]
        where = f" of {run}" if len(runs) > 1 else ""
        sentence = f"Sharpness{where}{peak.replace(', with a peak of', ' peaks at')}."
        return replace(found, sentence=f"{found.sentence} {sentence}")
    return found


def _development(run: list[TrackPoint], begin: str) -> str:
    first, last = run[0], run[-1]
    losses = f"{number(first.loss, 3)} to {number(last.loss, 3)}"
    text = f"{begin} {_name(first)} to {_name(last)} the loss goes from {losses}"
    if last.at_chance:
        return f"{text}, no better than a constant: the network has not learned"
    return f"{text}, and {_sharpness(first, last)}{_peak(run)}"


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
