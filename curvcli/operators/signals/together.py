"""What several processes have seen of one network, each on its share of the data, put together."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from curvcli.linalg.ranks import Ranks
from curvcli.objective.batch import Batch
from curvcli.operators.signals.activations import ActivationCounts
from curvcli.operators.signals.reductions import Reduction
from curvcli.operators.signals.signals import RECURRENT_SAMPLES, Recorder


class _Seen(NamedTuple):
    """One layer, as one process saw it."""

    activation: Reduction
    gradient: Reduction
    counts: ActivationCounts | None
    norm_gains: list[Tensor]


def worth_sharing(pieces: Sequence[Batch], ranks: Ranks) -> bool:
    """Whether every process has its part, and the first one the samples that single calls of layers are kept of."""
    # As `Ranks.share` has them.
    ends = [len(pieces) * r // ranks.size for r in range(ranks.size + 1)]
    parts = [pieces[a:b] for a, b in pairwise(ends)]
    return all(parts) and sum(piece.size for piece in parts[0]) >= RECURRENT_SAMPLES


def put_together(recorder: Recorder, ranks: Ranks) -> bool:
    """Add what the other processes have seen, in the order of the data, so that all know the same.

    Calls that are kept one by one (recurrent layers, attention) stay those of this process; the first one has those
    that a process alone would have kept.

    Returns:
        False: other layers were called in other processes, and nothing was added.
    """
    own = {
        key: _Seen(
            signal.activation.on_host(),
            signal.gradient.on_host(),
            None if signal.counts is None else signal.counts.on_host(),
            [gain.cpu() for gain in signal.norm_gains],
        )
        for key, signal in recorder.signals.items()
    }
    first, *others = ranks.collected([own])
    if any(list(other) != list(first) for other in others):
        return False
    for key, signal in recorder.signals.items():
        seen = first[key]
        for other in others:
            seen.activation.add(other[key].activation)
            seen.gradient.add(other[key].gradient)
            counts = other[key].counts
            if seen.counts is not None and counts is not None:
                seen.counts.add(counts)
            seen.norm_gains.extend(other[key].norm_gains)
        signal.activation, signal.gradient = seen.activation, seen.gradient
        signal.counts, signal.norm_gains = seen.counts, seen.norm_gains
    return True
