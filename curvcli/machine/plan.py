"""How much memory a graph needs, and how to stay within a limit."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from curvcli.errors import MemoryLimitError

# Fragmentation and buffers inside kernels, which no tensor shows.
_OVERHEAD = 1.1
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


class Need(NamedTuple):
    """Bytes of a graph or of its peak: ``fixed`` whatever the batch, ``per_sample`` for each sample."""

    fixed: float
    per_sample: float

    def of(self, samples: int) -> float:
        """Bytes for so many samples."""
        return _OVERHEAD * (self.fixed + self.per_sample * samples)

    def samples_within(self, size: float) -> int:
        """Samples that fit in ``size`` bytes."""
        return int((size / _OVERHEAD - self.fixed) / max(1.0, self.per_sample))


def human(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an allocation failed, on a device or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(
            s in str(error)
            for s in ("not enough memory", "out of memory", "alloc_cpu", "bad_alloc")
        )
    )


def plan(
    available: int,
    *,
    kept: Need,
    peak: Need,
    batch_sizes: list[int],
    vector: int,
    wanted: int,
    n: int,
    splittable: bool,
    preferred: int,
) -> Plan:
    """Choose between keeping the graph and rebuilding it, the micro-batch and the size of the basis.

    Args:
        available: bytes that may be allocated.
        kept: of a first-order graph that stays alive.
        peak: of building one and multiplying with it.
        batch_sizes: samples in each batch.
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
    largest = max(batch_sizes)
    free = available - _WORK_VECTORS * vector
    # All graphs stay, and one of them is multiplied with at a time.
    all_kept = sum(kept.of(size) for size in batch_sizes) + peak.of(largest) - kept.of(largest)
    if all_kept + comfortable * vector <= free:
        return Plan(True, None, min(n, preferred, int((free - all_kept) / max(1, vector))))
    piece = 1 if splittable else largest
    least = peak.of(piece)
    if least + smallest * vector > free:
        raise MemoryLimitError(
            f"{human(available)} are available; one {'sample' if splittable else 'batch'} needs "
            f"{human(least)}, and {smallest} vectors of {human(vector)} are the least for {wanted} "
            f"eigenvalues: {human(least + (smallest + _WORK_VECTORS) * vector)} in all",
            "raise --memory, restrict --params, ask for fewer eigenvalues, or use smaller samples",
        )
    # Half of what is left for the basis, as far as that helps; the rest for samples.
    extra = int(0.5 * (free - least - smallest * vector) / max(1, vector))
    capacity = min(smallest + extra, max(smallest, comfortable))
    if not splittable:
        return Plan(False, None, capacity)
    micro = peak.samples_within(free - capacity * vector)
    return Plan(False, max(1, min(micro, largest)), capacity)
