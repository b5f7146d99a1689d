"""How much memory a graph needs, and how to stay within a limit."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvcli.errors import MemoryLimitError

# Temporaries of a product, relative to what the graph keeps; measured on a ResNet-20 and a GPT.
_TEMPORARIES = 1.25
# Vectors of length n alive beside the basis: θ, ∇L, v, Hv, parts of both, one copy.
_WORK_VECTORS = 8


@dataclass(frozen=True)
class Plan:
    """How products will be computed within a memory limit."""

    keep_graph: bool
    """Keep the first-order graph of all batches between products."""
    micro_batch: int | None
    """Samples differentiated at a time; None: whole batches."""
    capacity: int
    """Vectors the Krylov basis may hold."""


def human(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def saved_bytes(build: Callable[[], object], exclude: set[int]) -> int:
    """Bytes of the distinct storages that autograd saves while ``build`` runs.

    Args:
        build: builds a graph.
        exclude: data pointers of storages that exist anyway (parameters, data).
    """
    seen: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in exclude:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = build()
    total = sum(size for size, _ in seen.values())
    del graph
    return total


def plan(
    available: int,
    *,
    fixed: int,
    per_sample: float,
    samples: int,
    largest_batch: int,
    vector: int,
    wanted: int,
    n: int,
    splittable: bool,
    preferred: int,
) -> Plan:
    """Choose between keeping the graph and rebuilding it, the micro-batch and the size of the basis.

    Args:
        available: bytes that may be allocated.
        fixed: bytes a graph needs whatever the batch.
        per_sample: bytes it needs for each sample.
        samples: samples in all batches.
        largest_batch: samples in the largest batch.
        vector: bytes of one vector of length n.
        wanted: eigenpairs asked for.
        n: dimension.
        splittable: whether batches may be cut.
        preferred: vectors the basis would like to hold.

    Raises:
        MemoryLimitError: not even one sample and the smallest basis fit.
    """
    smallest = min(n, wanted + 3)
    comfortable = min(n, preferred, 2 * wanted + 20)
    free = available - _WORK_VECTORS * vector
    graph_all = _TEMPORARIES * (per_sample * samples + fixed)
    if graph_all + comfortable * vector <= free:
        return Plan(True, None, min(n, preferred, int((free - graph_all) / max(1, vector))))
    smallest_piece = 1 if splittable else largest_batch
    least = _TEMPORARIES * (per_sample * smallest_piece + fixed)
    if least + smallest * vector > free:
        raise MemoryLimitError(
            f"{human(available)} are available; one {'sample' if splittable else 'batch'} needs "
            f"{human(least)}, and {smallest} vectors of {human(vector)} are the least for {wanted} "
            f"eigenvalues: {human(least + (smallest + _WORK_VECTORS) * vector)} in all",
            "raise --memory, restrict --params, ask for fewer eigenvalues, or use smaller samples",
        )
    room = free - least
    capacity = max(
        smallest, min(n, preferred, comfortable, int(0.5 * room / max(1, vector)) + smallest)
    )
    capacity = min(capacity, int((free - least) / max(1, vector)))
    if not splittable:
        return Plan(False, None, capacity)
    left = free - capacity * vector - _TEMPORARIES * fixed
    micro = int(left / max(1.0, _TEMPORARIES * per_sample))
    return Plan(False, max(1, min(micro, largest_batch)), capacity)
