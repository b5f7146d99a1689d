"""What a product takes, measured on a few samples, and the plan that follows."""

import shutil
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from curvcli.linalg.storage import HOST, unusable
from curvcli.machine.device import free_memory
from curvcli.machine.memory import Need, need_from
from curvcli.machine.meter import MemoryMeter
from curvcli.machine.plan import Plan, plan
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.probing import PROBE

if TYPE_CHECKING:
    from curvcli.operators.curvature.curvature import Curvature

# More than a graph and a product with it keep, relative to all tensors that evaluating the loss makes: a kept graph has
# those of the forward and of the backward pass, a product makes about twice as many again.
_GENEROUS = 30
# Of what is free where vectors are kept, so much may be taken.
_TAKEN = 0.9


def measured(operator: "Curvature[Any]", piece: Batch) -> tuple[int, int]:
    """(bytes the graph of ``piece`` keeps, peak of building it and multiplying with it)."""
    views = operator.views(
        torch.ones(operator.length, dtype=operator.dtype, device=operator.device)
    )
    with MemoryMeter() as meter:
        if operator.finite_differences:
            total = operator.objective.sum_of(piece)
            torch.autograd.grad(total, operator.objective.parameters, allow_unused=True)
            return 0, meter.peak
        graph = operator._graph(piece)
        kept = meter.live
        operator._multiply(graph, views, retain=True)
    return kept, meter.peak


def make_plan(
    objective: Objective,
    available: int,
    measure: Callable[[Batch], tuple[int, int]],
    wanted: int,
    preferred: int,
) -> Plan:
    """Keep the graph or rebuild it, the samples at a time, and the size of the basis.

    Args:
        objective: L.
        available: bytes that may be allocated.
        measure: (bytes the graph of a piece keeps, peak of building it and multiplying with it).
        wanted: eigenpairs asked for.
        preferred: vectors the basis would like to hold.

    Raises:
        MemoryLimitError: not even one sample and the smallest basis fit.
    """
    best = min(objective.n, preferred)
    ranks = objective.ranks
    # One plan for all processes: that of the one with the least memory.
    available = -ranks.largest(-available)
    share = ranks.largest_share if objective.splittable else int
    held = ranks.largest(objective.length) if ranks.parted else objective.n
    stored = None
    if objective.offload is not None:
        stored = -ranks.largest(-_free_in(objective.offload, ranks.size))
    kept_here = 0 if stored is not None else held
    planned = partial(
        plan,
        available,
        batch_sizes=[share(batch.size) for batch in objective.batches],
        vector=(held + objective.untouched) * objective.dtype.itemsize,
        wanted=wanted,
        n=objective.n,
        splittable=objective.splittable,
        preferred=preferred,
        stored=stored,
    )

    def surely(need: Need, samples: int) -> bool:
        """Whether everything fits, so that nothing more need be known."""
        if need.of(samples) + best * kept_here * 8 >= available:
            return False
        rough = planned(kept=need, peak=need)
        return rough.keep_graph and rough.capacity == best

    largest = max(objective.batches, key=lambda b: b.size)
    generous = Need(0.0, _GENEROUS * objective.evaluated_bytes / largest.size)
    if objective.evaluated_bytes and surely(generous, share(objective.samples)):
        return planned(kept=generous, peak=generous)
    small = largest if not objective.splittable else next(iter(largest.pieces(PROBE)))
    first = measure(small)
    # As if every byte grew with the samples.
    kept, peak = (Need(0.0, size / small.size) for size in first)
    if surely(peak, share(largest.size)):
        return planned(kept=kept, peak=peak)
    larger = small if not objective.splittable else next(iter(largest.pieces(2 * PROBE)))
    if larger.size > small.size:
        last = measure(larger)
        kept, peak = (
            need_from((small.size, a), (larger.size, b)) for a, b in zip(first, last, strict=True)
        )
    return planned(kept=kept, peak=peak)


def _free_in(place: str, processes: int) -> int:
    """Bytes that the vectors of each of so many processes may take in the host's memory, or in a folder.

    Raises:
        OutputError: there is no such folder.
    """
    if place == HOST:
        free = free_memory(torch.device("cpu"))
    else:
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            raise unusable(place, error) from None
    return int(_TAKEN * free) // processes
