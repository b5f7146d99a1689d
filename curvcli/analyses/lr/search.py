"""The highest learning rate that works, between one that does and one that does not."""

import math
from collections.abc import Callable, Iterable

from curvcli.analyses.lr.result import Trial, Verdict
from curvcli.operators.surface.rollout import Course, Dead

# Ratio of neighbouring rates before the interval is halved.
FACTOR = 4.0
# So much more of the units may be dead at the end of a run.
_DYING = 0.1


def search(
    first: float, trial: Callable[[float], Trial | None], refine: int, most: int
) -> list[Trial]:
    """Trials by rate: in factors of four to both sides of the border, then the border halved on a logarithmic axis.

    Args:
        first: rate to begin with.
        trial: a run at a rate; None ends the search.
        refine: halvings.
        most: runs at most.
    """
    found: dict[float, Trial] = {}

    def tried(rate: float) -> Trial | None:
        if len(found) >= most:
            return None
        done = trial(rate)
        if done is not None:
            found[rate] = done
        return done

    rate = first
    latest = tried(rate)
    upward = latest is not None and latest.verdict == "works"
    while latest is not None and (latest.verdict == "works") == upward:
        rate = rate * FACTOR if upward else rate / FACTOR
        latest = tried(rate)
    for _ in range(refine):
        good, bad = highest_working(found.values()), lowest_failing(found.values())
        if good is None or bad is None or tried(math.sqrt(good.rate * bad.rate)) is None:
            break
    return [found[rate] for rate in sorted(found)]


def lowest_failing(trials: Iterable[Trial]) -> Trial | None:
    """The lowest rate that does not work."""
    return min((t for t in trials if t.verdict != "works"), key=lambda t: t.rate, default=None)


def highest_working(trials: Iterable[Trial]) -> Trial | None:
    """The highest rate that works and has none below it that does not."""
    known = list(trials)
    bad = lowest_failing(known)
    below = [t for t in known if bad is None or t.rate < bad.rate]
    return max(below, key=lambda t: t.rate, default=None)


def judge(course: Course, dead: Dead, rounding: float, always_above: Callable[[], bool]) -> Verdict:
    """What became of a run.

    Args:
        course: the run.
        dead: the units that were dead at its start.
        rounding: of a loss.
        always_above: whether λ · rate is above the limit at both ends.
    """
    start, end, lowest = course.losses[0], course.losses[-1], min(course.losses)
    if not course.finite or end > start + rounding:
        return "diverges"
    if course.dead is not None and (
        course.dead.fraction > dead.fraction + _DYING or set(course.dead.layers) - set(dead.layers)
    ):
        return "dies"
    if end > lowest + 0.5 * (start - lowest) + rounding:
        return "rises"
    return "unstable" if always_above() else "works"
