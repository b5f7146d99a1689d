"""Findings over time: what changed from checkpoint to checkpoint."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.rules import Rule
from curvcli.analyses.shared.sanity import FAR
from curvcli.analyses.track.findings import (
    AT_LIMIT_LONG,
    DIED,
    LOSS_RISES,
    NOISE_SCALE,
    RANK_FALLS,
    RUN_DIED,
    STOPPED,
    SUSPICIOUS,
)
from curvcli.analyses.track.result import TrackPoint
from curvcli.objective.movement import STILL, still

# A loss so many times its lowest has risen.
_RISEN = 1.5
# So much more of the units are dead than at the checkpoint before.
_DYING = 0.25
# Checkpoints in a row at the limit that are long; a rank below this share of its highest has fallen.
_LONG = 3
_HALF = 0.5


def development(
    journal: Journal,
    points: list[TrackPoint],
    batch: int | None,
    look: Callable[[TrackPoint], str] = lambda _: "curvcli gradients",
) -> None:
    """Find what happened along each run.

    Args:
        journal: where findings go.
        points: of all runs.
        batch: the batch size of the training.
        look: the command that looks at the gradients of a checkpoint.
    """
    for run in dict.fromkeys(p.run for p in points):
        whole = [p for p in points if p.run == run]
        died = _death(journal, whole)
        series = [p for p in whole if p.loss is not None]
        _suspicious(journal, series, look)
        if len(series) > 1:
            if not died:
                _loss(journal, series)
                _units(journal, series)
            _edge(journal, series)
            _layers(journal, series, look)
            if not died:
                _ranks(journal, series)
        _noise(journal, series, batch)


def _suspicious(
    journal: Journal, series: list[TrackPoint], look: Callable[[TrackPoint], str]
) -> None:
    """What is odd about the data or the output of the last checkpoint, once for all runs that share it."""
    told = "; ".join(series[-1].suspicions) if series else ""
    if told and not any(f.message.startswith(told) for f in journal.findings):
        journal.find(SUSPICIOUS, series[-1].checkpoint, f"{told}: '{look(series[-1])}' says more")


def _on_such_data(rule: Rule, series: list[TrackPoint]) -> Rule:
    """A rule that blames training, which data of another scale may explain as well."""
    if not series[-1].suspicions:
        return rule
    return replace(rule, remedy="mend inputs and outputs first, which may be all there is to it")


def _gone(series: list[TrackPoint], index: int) -> bool:
    """Not finite; or no better than a constant, having been better or having lost units. Fresh weights are neither."""
    point = series[index]
    if point.error is not None:
        return point.error.code == "non-finite"
    learned = any(p.loss is not None and not p.at_chance for p in series[:index])
    dying = (point.dead_fraction or 0.0) > (series[0].dead_fraction or 0.0) + _DYING
    return point.at_chance and (learned or dying)


def _death(journal: Journal, series: list[TrackPoint]) -> bool:
    """Whether the run was alive once, and is not at its end; when it died is said in one sentence."""
    gone = [_gone(series, i) for i in range(len(series))]
    first = next((i for i in range(len(gone)) if all(gone[i:])), 0)
    before, after = series[first - 1], series[first]
    if first == 0 or before.loss is None:
        return False
    if after.loss is None:
        how = "its loss or weights are not finite any more"
    else:
        how = f"its loss went from {before.loss:.4g} to {after.loss:.4g}, no better than a constant"
        if (after.dead_fraction or 0.0) > (before.dead_fraction or 0.0):
            how += f", and dead units from {before.dead_fraction or 0:.0%} to {after.dead_fraction or 0:.0%}"
    remedy = (
        "go back to the checkpoint before, with a lower rate ('curvcli lr') or clipped gradients"
    )
    if (after.statistics or 0.0) > FAR:
        remedy = (
            f"the running statistics of a BatchNorm are {after.statistics:.3g} times off those of the data, which may "
            "be all: 'curvcli gradients' names it, --train-mode takes those of the batch"
        )
    elif after.wrong:
        remedy = (
            "where the loss on training data is fine, labels or inputs here are not those of training; else "
            f"{remedy}"
        )
    name = f"the run {before.run}" if before.run else "the run"
    journal.find(
        RUN_DIED, after.checkpoint,
        f"{name} died between {_named(before)} and {_named(after)}{_rates(before, after)}: {how}: {remedy}",
        value=after.loss,
    )  # fmt: skip
    return True


def _rates(before: TrackPoint, after: TrackPoint) -> str:
    """The learning rate that a run died at; it may have changed in between."""
    known = [p.learning_rate for p in (before, after) if p.learning_rate is not None]
    if len(set(known)) > 1:
        return f" (learning rate {known[0]:g}, then {known[1]:g})"
    return f" at a learning rate of {known[0]:g}" if known and known[0] else ""


def _edge(journal: Journal, series: list[TrackPoint]) -> None:
    """The longest stretch of checkpoints at the limit or above."""
    stretches: list[list[TrackPoint]] = [[]]
    for point in series:
        if point.edge in ("at", "above"):
            stretches[-1].append(point)
        elif stretches[-1]:
            stretches.append([])
    longest = max(stretches, key=len)
    if len(longest) >= _LONG and 2 * len(longest) >= len(series):
        highest = max(p.sharpness_ratio or 0.0 for p in longest)
        journal.find(
            AT_LIMIT_LONG, longest[-1].checkpoint,
            f"λ_max is at the optimizer's limit or above from {_named(longest[0])} to {_named(longest[-1])}, for "
            f"{len(longest)} of {len(series)} checkpoints, up to {highest:.3g} times the limit",
            value=len(longest) / len(series),
        )  # fmt: skip


def _ranks(journal: Journal, series: list[TrackPoint]) -> None:
    """Effective ranks of features and weights that fell below half of what they were."""
    histories = {"the features": [p.feature_rank for p in series]}
    for layer in series[-1].weight_rank:
        histories[f"the weights of {layer}"] = [p.weight_rank.get(layer) for p in series]
    fallen = []
    for what, ranks in histories.items():
        # Fresh weights have high ranks of no use: what counts is what was there once the network had learned.
        known = [
            (r, p) for r, p in zip(ranks, series, strict=True) if r is not None and not p.at_chance
        ]
        if len(known) < 2:
            continue
        (highest, since), (last, _) = max(known, key=lambda k: k[0]), known[-1]
        if last < _HALF * highest:
            fallen.append((last / highest, what, highest, since, last))
    if fallen:
        share, what, highest, since, last = min(fallen, key=lambda f: f[0])
        more = f" (and {len(fallen) - 1} more)" if len(fallen) > 1 else ""
        journal.find(
            _on_such_data(RANK_FALLS, series), series[-1].checkpoint,
            f"the effective rank of {what} fell from {highest:.3g} at {_named(since)} to {last:.3g} at "
            f"{_named(series[-1])}{more}",
            value=share,
        )  # fmt: skip


def _noise(journal: Journal, series: list[TrackPoint], batch: int | None) -> None:
    """The batch size of the training against the noise scale of the last checkpoint that has one."""
    last = next((p for p in reversed(series) if p.noise_scale), None)
    if batch is None or last is None or not last.noise_scale:
        return
    ratio = last.noise_scale / batch
    error = "" if last.noise_scale_error is None else f" ± {last.noise_scale_error:.2g}"
    told = f"the noise scale at {_named(last)} is {last.noise_scale:.3g}{error} samples, the batch {batch}"
    limit = NOISE_SCALE.threshold or 1.0
    if ratio > limit:
        advice = "steps are mostly noise: a larger batch, a lower rate or an average of weights (EMA) pays"
        journal.find(NOISE_SCALE, last.checkpoint, f"{told}: {advice}", value=ratio)
    elif ratio < 1 / limit:
        advice = "the batch is larger than pays: more steps with a smaller one learn as much from less data"
        journal.find(NOISE_SCALE, last.checkpoint, f"{told}: {advice}", value=ratio)


def _named(point: TrackPoint) -> str:
    return point.checkpoint if point.step is None else f"step {point.step}"


def _loss(journal: Journal, series: list[TrackPoint]) -> None:
    low, last = min(series, key=lambda p: p.loss or 0.0), series[-1]
    if low.loss is not None and last.loss is not None and last.loss > _RISEN * low.loss > 0:
        journal.find(
            _on_such_data(LOSS_RISES, series), last.checkpoint,
            f"the loss rose from {low.loss:.4g} at {_named(low)} to {last.loss:.4g} at {_named(last)}",
            value=last.loss, threshold=_RISEN * low.loss,
        )  # fmt: skip


def _units(journal: Journal, series: list[TrackPoint]) -> None:
    for before, after in pairwise(series):
        if (after.dead_fraction or 0.0) > (before.dead_fraction or 0.0) + _DYING:
            journal.find(
                _on_such_data(DIED, series), after.checkpoint,
                f"between {_named(before)} and {_named(after)} units died: {before.dead_fraction or 0.0:.0%} were "
                f"dead, then {after.dead_fraction or 0.0:.0%}; the loss went from {before.loss:.4g} to "
                f"{after.loss:.4g}",
                value=after.dead_fraction, threshold=(before.dead_fraction or 0.0) + _DYING,
            )  # fmt: skip
            return


def _layers(journal: Journal, series: list[TrackPoint], look: Callable[[TrackPoint], str]) -> None:
    last = series[-1].moved
    stopped = still(last)
    if last and all(way < STILL for way in last.values()):
        _standstill(journal, series)
    elif stopped and len(stopped) < len(last):
        since = next(
            (p for p in series[1:] if all(p.moved.get(n, 1.0) < STILL for n in stopped)), series[-1]
        )
        journal.find(
            STOPPED, stopped[0],
            f"{len(stopped)} of {len(last)} parameters do not move any more, at the latest since {_named(since)}, "
            f"while others do ({', '.join(stopped[:3])}): "
            f"'{look(series[-1])} --since {shlex.quote(series[0].checkpoint)}' says why",
            value=last[stopped[0]], threshold=STILL,
        )  # fmt: skip


def _standstill(journal: Journal, series: list[TrackPoint]) -> None:
    """No parameter moves any more: since when, and at which rate."""
    index = len(series) - 1
    while index > 1 and all(way < STILL for way in series[index - 1].moved.values()):
        index -= 1
    since, last = series[index - 1], series[-1]
    rate = (
        ""
        if last.learning_rate is None
        else f" (the learning rate there is {last.learning_rate:g})"
    )
    journal.find(
        STOPPED, last.checkpoint,
        f"no parameter has moved from {_named(since)} to {_named(last)}{rate}: these are copies of one file, a rate of "
        "zero, an optimizer that takes no steps, or steps below the precision of the weights",
        value=max(last.moved.values()), threshold=STILL,
    )  # fmt: skip
