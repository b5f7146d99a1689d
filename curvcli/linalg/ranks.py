"""Several processes on one problem: each takes its share of the data, and all hold the same vectors.

Whatever is summed over the data is summed over the processes by one exchange, after which every process has the same
bits. What follows from them (orthogonalisation, small eigenproblems, decisions) is then the same everywhere, so that
no other exchange is needed. Only the basis of a Krylov space is divided, by entries: see `linalg.basis`.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass
class Traffic:
    """What a process has sent to the others."""

    messages: int = 0
    bytes: int = 0


class Ranks:
    """One process alone: its share is all, and a sum over the processes is its own part."""

    size = 1
    rank = 0

    def __init__(self) -> None:
        self.traffic = Traffic()

    def share(self, count: int) -> slice:
        """This process' part of ``count`` things in a row; parts differ by one at most.

        >>> Ranks().share(7)
        slice(0, 7, None)
        """
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def largest_share(self, count: int) -> int:
        """Of any process."""
        return -(-count // self.size)

    def sum(self, part: Tensor) -> Tensor:
        """The sum over all processes, in place of this one's part."""
        return part

    def totals(self, *parts: float) -> list[float]:
        """The sum of each number over all processes, in float64."""
        return list(parts)

    def largest(self, value: int) -> int:
        """Over all processes."""
        return value

    def gathered(self, part_N: Tensor, n: int) -> Tensor:
        """The whole vector of ``n`` entries, of which every process has its `share`."""
        return part_N

    def collected(self, items: list[T]) -> list[T]:
        """The items of all processes, one process after the other."""
        return items


class Group(Ranks):
    """The processes of a `torch.distributed` group.

    Args:
        wait: ends when an exchange has ended, or raises where a process is lost.

    Raises:
        ValueError: there is no default group.
    """

    def __init__(self, wait: Callable[[Any], None]) -> None:
        super().__init__()
        self._wait = wait
        self.size, self.rank = dist.get_world_size(), dist.get_rank()

    def sum(self, part: Tensor) -> Tensor:
        """See `Ranks.sum`."""
        part = part.contiguous()
        self._exchange(dist.all_reduce(part, async_op=True), 2 * part.nbytes)
        return part

    def totals(self, *parts: float) -> list[float]:
        """See `Ranks.totals`."""
        found: list[float] = self.sum(torch.tensor(parts, dtype=torch.float64)).tolist()
        return found

    def largest(self, value: int) -> int:
        """See `Ranks.largest`."""
        found = torch.tensor([value])
        work = dist.all_reduce(found, dist.ReduceOp.MAX, async_op=True)
        self._exchange(work, 2 * found.nbytes)
        return int(found)

    def gathered(self, part_N: Tensor, n: int) -> Tensor:
        """See `Ranks.gathered`."""
        # Equal lengths for the exchange: the last entry of a shorter part is padding.
        length = self.largest_share(n)
        padded = part_N.new_zeros(length)
        padded[: len(part_N)] = part_N
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._exchange(dist.all_gather(parts, padded, async_op=True), self.size * padded.nbytes)
        lengths = [n * (r + 1) // self.size - n * r // self.size for r in range(self.size)]
        return torch.cat([p[:k] for p, k in zip(parts, lengths, strict=True)])

    def collected(self, items: list[T]) -> list[T]:
        """See `Ranks.collected`; they travel as pickles among processes that run the same program."""
        own = torch.frombuffer(bytearray(pickle.dumps(items)), dtype=torch.uint8)
        length = self.largest(len(own))
        padded = torch.zeros(length, dtype=torch.uint8)
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._exchange(dist.all_gather(parts, padded, async_op=True), self.size * length)
        # What follows the end of a pickle is not read.
        return [item for part in parts for item in pickle.loads(part.numpy().tobytes())]

    def _exchange(self, work: Any, whole: int) -> None:
        """Wait; ``whole`` bytes go around among the processes, of which this one sends its part of (R − 1)/R."""
        self._wait(work)
        self.traffic.messages += 1
        self.traffic.bytes += whole * (self.size - 1) // self.size


ALONE = Ranks()
"""No other process."""
