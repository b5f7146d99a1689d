"""Findings over time: what changed from checkpoint to checkpoint."""

from itertools import pairwise

from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.track.findings import DIED, LOSS_RISES, STOPPED
from curvcli.analyses.track.result import TrackPoint
from curvcli.objective.movement import STILL

# A loss so many times its lowest has risen.
_RISEN = 1.5
# So much more of the units are dead than at the checkpoint before.
_DYING = 0.25


def development(journal: Journal, points: list[TrackPoint]) -> None:
    """Find what happened along each run."""
    for run in dict.fromkeys(p.run for p in points):
        series = [p for p in points if p.run == run and p.loss is not None]
        if len(series) > 1:
            _loss(journal, series)
            _units(journal, series)
            _layers(journal, series)


def _named(point: TrackPoint) -> str:
    return point.checkpoint if point.step is None else f"step {point.step}"


def _loss(journal: Journal, series: list[TrackPoint]) -> None:
    low, last = min(series, key=lambda p: p.loss or 0.0), series[-1]
    if low.loss is not None and last.loss is not None and last.loss > _RISEN * low.loss > 0:
        journal.find(
            LOSS_RISES, last.checkpoint,
            f"the loss rose from {low.loss:.4g} at {_named(low)} to {last.loss:.4g} at {_named(last)}",
            value=last.loss, threshold=_RISEN * low.loss,
        )  # fmt: skip


def _units(journal: Journal, series: list[TrackPoint]) -> None:
    for before, after in pairwise(series):
        if (after.dead_fraction or 0.0) > (before.dead_fraction or 0.0) + _DYING:
            journal.find(
                DIED, after.checkpoint,
                f"between {_named(before)} and {_named(after)} units died: {before.dead_fraction or 0.0:.0%} were "
                f"dead, then {after.dead_fraction or 0.0:.0%}; the loss went from {before.loss:.4g} to "
                f"{after.loss:.4g}",
                value=after.dead_fraction, threshold=(before.dead_fraction or 0.0) + _DYING,
            )  # fmt: skip
            return


def _layers(journal: Journal, series: list[TrackPoint]) -> None:
    last = series[-1].moved
    still = [name for name, share in last.items() if share < STILL]
    if still and len(still) < len(last):
        since = next(
            (p for p in series[1:] if all(p.moved.get(n, 1.0) < STILL for n in still)), series[-1]
        )
        journal.find(
            STOPPED, still[0],
            f"{len(still)} of {len(last)} parameters do not move any more, at the latest since {_named(since)}, "
            f"while others do ({', '.join(still[:3])})",
            value=last[still[0]], threshold=STILL,
        )  # fmt: skip
