"""Frozen data, and what is done alike to everything in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from curvcli.machine.containers import take


@dataclass(frozen=True)
class Batch:
    """Frozen data, passed to the loss as it is.

    Args:
        data: tensors in tuples, lists and dicts, or any object the objective understands.
        size: samples in it.
        splittable: whether every tensor's first dimension runs over the samples, so that a slice of
            the batch is a batch.
        names: what the data calls the inputs that are passed by position.
        idle: whether it only keeps this process in step with others that have data left: it adds nothing.
    """

    data: Any
    size: int
    splittable: bool = True
    names: tuple[str, ...] = ()
    idle: bool = False

    def pieces(self, samples: int) -> Iterator["Batch"]:
        """Consecutive slices of at most ``samples`` samples."""
        if not self.splittable or samples >= self.size:
            yield self
            return
        for first in range(0, self.size, samples):
            last = min(first + samples, self.size)
            yield Batch(take(self.data, slice(first, last)), last - first)

    def between(self, samples: slice) -> "Batch | None":
        """Consecutive samples; None where there are none. The batch must be splittable."""
        if samples == slice(0, self.size):
            return self
        count = samples.stop - samples.start
        return Batch(take(self.data, samples), count) if count else None

    def take(self, samples: Sequence[int]) -> "Batch":
        """The samples of these numbers, in that order; the batch must be splittable."""
        return Batch(take(self.data, list(samples)), len(samples))
