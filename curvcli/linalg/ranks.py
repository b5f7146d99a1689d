"""Several processes on one problem: each takes its share of the data, and all hold the same vectors, or parts of them.

Whatever is summed over the data is summed over the processes by one exchange, after which every process has the same
bits. What follows from them (orthogonalisation, small eigenproblems, decisions) is then the same everywhere, so that
no other exchange is needed. Only the basis of a Krylov space is divided, by entries: see `linalg.basis`.

Where not even the weights fit one process, all vectors are divided (`Parted`): each process holds its own entries of
every one, and what is summed over entries (a norm, a scalar product) is summed over the processes.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from curvcli.errors import CurvError
from curvcli.linalg.vectors import double, euclidean_norm

T = TypeVar("T")

# Entries that are sent to all processes at a time.
_PIECE = 1 << 22


@dataclass
class Traffic:
    """What a process has sent to the others."""

    messages: int = 0
    bytes: int = 0


class Ranks:
    """One process alone: its share is all, and a sum over the processes is its own part."""

    size = 1
    rank = 0
    parted = False
    """Whether each process holds its own entries of all vectors, and none of them the others'."""
    lengths: Sequence[int] = ()
    """Entries of a vector that each process holds, where they are parted."""

    def __init__(self) -> None:
        self.traffic = Traffic()

    def share(self, count: int, rank: int | None = None) -> slice:
        """The part of ``count`` things in a row of this process, or of another; parts differ by one at most.

        >>> Ranks().share(7)
        slice(0, 7, None)
        """
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def largest_share(self, count: int) -> int:
        """Of any process."""
        return -(-count // self.size)

    def sum(self, part: Tensor) -> Tensor:
        """The sum over all processes, in place of this one's part."""
        return part

    def over_data(self, part_N: Tensor) -> Tensor:
        """The sum of what the data of each process contributes to a vector, in place of this one's part."""
        return self.sum(part_N)

    def over_entries(self, part: Tensor) -> Tensor:
        """A sum over the entries of vectors, from those that this process holds, in place of its part."""
        return part

    def entries(self, n: int) -> slice:
        """Those of a vector of ``n`` that this process holds.

        >>> Ranks().entries(7)
        slice(0, 7, None)
        """
        return slice(0, n)

    def dimension(self, length: int) -> int:
        """The n of vectors of which this process holds ``length`` entries."""
        return length

    def kept(self, n: int) -> slice:
        """Of what this process holds of a vector of ``n``, the entries that it keeps in a basis."""
        return self.share(n)

    def of_entries(self, lengths: Sequence[int]) -> "Ranks":
        """The same processes for vectors of some of the entries, of which they hold so many, where they are parted."""
        return ALONE

    def whole(self, own_N: Tensor) -> Tensor:
        """All entries of a short vector."""
        return own_N

    def dot(self, u_N: Tensor, v_N: Tensor) -> Tensor:
        """u·v, a scalar tensor."""
        return self.over_entries(torch.dot(u_N, v_N))

    def inner(self, u_KN: Tensor, v_LN: Tensor) -> Tensor:
        """The scalar products of K vectors with L others, shape (K, L); of one with one, see `dot`."""
        return self.over_entries(u_KN @ v_LN.T)

    def norm(self, v_N: Tensor) -> Tensor:
        """‖v‖, a scalar tensor, see `euclidean_norm`."""
        own = euclidean_norm(v_N)
        if not self.parted:
            return own
        # In float64, where squares neither underflow nor overflow.
        return self.over_entries(double(own).square()).sqrt().to(own.dtype)

    def norms(self, v_KN: Tensor) -> Tensor:
        """‖v‖ of each row, shape (K,)."""
        return torch.stack([self.norm(v_N) for v_N in v_KN])

    def all_finite(self, v: Tensor) -> bool:
        """Whether all entries of vectors are finite."""
        own = bool(torch.isfinite(v).all())
        return not self.largest(int(not own)) if self.parted else own

    def totals(self, *parts: float) -> list[float]:
        """The sum of each number over all processes, in float64."""
        return list(parts)

    def largest(self, value: int) -> int:
        """Over all processes."""
        return value

    def first(self, found: Tensor) -> Tensor:
        """What the first process found, in place of what this one did: the same bits for all."""
        return found

    def gathered(self, part_N: Tensor, n: int) -> Tensor:
        """The whole vector of ``n`` entries, of which every process has its `share`."""
        return part_N

    def collected(self, items: list[T]) -> list[T]:
        """The items of all processes, one process after the other."""
        return items

    def in_turn(self, own: Tensor, lengths: Sequence[int]) -> Iterator[Tensor]:
        """Flat tensors of all processes, one process after the other, in pieces that every process gets.

        Args:
            own: of this process.
            lengths: of each process.
        """
        yield own


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

    def first(self, found: Tensor) -> Tensor:
        """See `Ranks.first`."""
        return self.sum(found.clone() if self.rank == 0 else torch.zeros_like(found))

    def gathered(self, part_N: Tensor, n: int) -> Tensor:
        """See `Ranks.gathered`."""
        # Equal lengths for the exchange: the last entry of a shorter part is padding.
        length = self.largest_share(n)
        padded = part_N.new_zeros(length)
        padded[: len(part_N)] = part_N
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._exchange(dist.all_gather(parts, padded, async_op=True), self.size * padded.nbytes)
        shares = [self.share(n, r) for r in range(self.size)]
        return torch.cat([p[: s.stop - s.start] for p, s in zip(parts, shares, strict=True)])

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

    def in_turn(self, own: Tensor, lengths: Sequence[int]) -> Iterator[Tensor]:
        """See `Ranks.in_turn`."""
        for rank, length in enumerate(lengths):
            for first in range(0, length, _PIECE):
                size = min(_PIECE, length - first)
                mine = rank == self.rank
                piece = own[first : first + size].contiguous() if mine else own.new_empty(size)
                self._exchange(dist.broadcast(piece, rank, async_op=True), piece.nbytes)
                yield piece

    def own_of_sum(self, whole_N: Tensor) -> Tensor:
        """This process' `share` of the sum over all processes."""
        return self.sum(whole_N)[self.share(len(whole_N))].clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Group":
        return self  # the processes, of which a copied network has the same

    def _exchange(self, work: Any, whole: int) -> None:
        """Wait; ``whole`` bytes go around among the processes, of which this one sends its part of (R − 1)/R."""
        self._wait(work)
        self.traffic.messages += 1
        self.traffic.bytes += whole * (self.size - 1) // self.size


class Parted(Group):
    """A group whose processes hold their own entries of all vectors.

    Args:
        group: the processes.
        lengths: entries that each of them holds; a vector is these parts one after the other.
    """

    parted = True

    def __init__(self, group: Group, lengths: Sequence[int]) -> None:
        super().__init__(group._wait)
        self.traffic = group.traffic
        self.lengths = tuple(lengths)
        first = sum(lengths[: self.rank])
        self._entries = slice(first, first + lengths[self.rank])
        self._n = sum(lengths)

    def dimension(self, length: int) -> int:
        """See `Ranks.dimension`."""
        return self._n

    def of_entries(self, lengths: Sequence[int]) -> Ranks:
        """See `Ranks.of_entries`."""
        return Parted(self, lengths)

    def whole(self, own_N: Tensor) -> Tensor:
        """See `Ranks.whole`."""
        whole_N = own_N.new_zeros(self._n)
        whole_N[self._entries] = own_N
        return self.sum(whole_N)

    def over_data(self, part_N: Tensor) -> Tensor:
        """See `Ranks.over_data`; gathered weights have summed it up in their derivative."""
        return part_N

    def over_entries(self, part: Tensor) -> Tensor:
        """See `Ranks.over_entries`."""
        return self.sum(part)

    def entries(self, n: int) -> slice:
        """See `Ranks.entries`."""
        return self._entries

    def kept(self, n: int) -> slice:
        """See `Ranks.kept`: all that it holds."""
        return slice(0, self._entries.stop - self._entries.start)


ALONE = Ranks()
"""No other process."""


def check_divided(name: str, were: int, ranks: Ranks) -> None:
    """Whether what a run wrote can be gone on from: vectors are divided among as many processes as then.

    Args:
        name: of the file.
        were: processes among which they were divided; 0: they were whole.
        ranks: the processes now.

    Raises:
        CurvError: they are not.
    """
    now = ranks.size if ranks.parted else 0
    if were == now:
        return
    here = f"here {now} processes do" if now else "here no process does"
    raise CurvError(
        f"{name} is of {were} processes that divided the weights, and {here}"
        if were
        else f"{name} is of a run that did not divide the weights, and {here}",
        (f"go on with --ranks {were} --shard" if were else "go on without --shard")
        + ", or name another file by --state",
    )


def all_see(path_exists: bool, name: str, ranks: Ranks) -> bool:
    """Whether a file is there, for all processes alike.

    Raises:
        CurvError: some see it, and others do not.
    """
    some, missing = ranks.largest(int(path_exists)), ranks.largest(int(not path_exists))
    if some and missing and ranks.size > 1:
        raise CurvError(
            f"only some of the {ranks.size} processes see {name}",
            "name a file by --state that all of them see",
        )
    return path_exists
