"""Graph, micro-batches and basis divided so that they stay within the memory."""

import sys
from dataclasses import dataclass

from curvcli.errors import MemoryLimitError
from curvcli.machine.memory import Need, human

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

    def smaller(self, largest: int, splittable: bool) -> "Plan":
        """The next plan after memory ran out: half of the samples at a time, no graph kept.

        Args:
            largest: samples in the largest batch.
            splittable: whether batches may be cut.

        Raises:
            MemoryLimitError: there is no smaller one.
        """
        present = self.micro_batch or largest
        if not splittable or (present == 1 and not self.keep_graph):
            raise MemoryLimitError(
                f"out of memory with {present} samples at a time",
                "restrict --params, ask for fewer eigenvalues, or use a larger machine",
            )
        return Plan(False, max(1, present // 2), self.capacity)


def smallest_basis(wanted: int, n: int) -> int:
    """Vectors without which a basis does not come to so many eigenpairs."""
    return min(n, wanted + 3)


def least_vectors(wanted: int, n: int, basis_elsewhere: bool) -> int:
    """Vectors that there must be room for beside the weights."""
    return _WORK_VECTORS + (0 if basis_elsewhere else smallest_basis(wanted, n))


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
    stored: int | None = None,
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
        stored: bytes for such vectors where they are kept elsewhere; None: they are among those available.

    Raises:
        MemoryLimitError: not even one sample and the smallest basis fit.
    """
    smallest = smallest_basis(wanted, n)
    row = vector
    if stored is not None:
        row, preferred = 0, min(preferred, stored // max(1, vector))
        if preferred < smallest:
            raise MemoryLimitError(
                f"--offload: there is room for {preferred} vectors of {human(vector)}, and {smallest} are the least "
                f"for {wanted} eigenvalues",
                "name a folder on a larger disk, restrict --params, or ask for fewer eigenvalues",
            )
    comfortable = min(n, preferred, 2 * wanted + 20)
    largest = max(batch_sizes)
    free = available - _WORK_VECTORS * vector
    # All graphs stay, and one of them is multiplied with at a time.
    all_kept = sum(kept.of(size) for size in batch_sizes) + peak.of(largest) - kept.of(largest)
    if all_kept + comfortable * row <= free:
        return Plan(True, None, min(n, preferred, _rows(free - all_kept, row)))
    piece = 1 if splittable else largest
    least = peak.of(piece)
    if least + smallest * row > free:
        vectors = least_vectors(wanted, n, row == 0)
        raise MemoryLimitError(
            f"{human(available)} are available; one {'sample' if splittable else 'batch'} needs "
            f"{human(least)}, and {vectors} vectors of {human(vector)} are the least for {wanted} "
            f"eigenvalues: {human(least + vectors * vector)} in all",
            "raise --memory, restrict --params, "
            + ("keep vectors on a disk (--offload), ask for fewer eigenvalues, " if row else "")
            + "or use smaller samples",
        )
    # Half of what is left for the basis, as far as that helps; the rest for samples.
    extra = _rows(0.5 * (free - least - smallest * row), row)
    capacity = min(smallest + extra, max(smallest, comfortable) if row else min(n, preferred))
    if not splittable:
        return Plan(False, None, capacity)
    micro = peak.samples_within(free - capacity * row)
    return Plan(False, max(1, min(micro, largest)), capacity)


def _rows(size: float, row: int) -> int:
    """Vectors that take so many bytes; those that are kept elsewhere take none."""
    return int(size / row) if row else sys.maxsize
