"""Weights gathered from the processes that share them, as an operation that can be differentiated any number of times.

Gathering is linear, and its transpose is the sum over the processes of which each keeps its share. So what autograd
makes of a loss that uses gathered weights (∇L, H v) is divided like the weights, and summed over the data of all
processes. A graph that is kept holds no gathered weights: they are gathered again when it is used.

All processes gather at once: they must evaluate the same blocks in the same order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.multiprocessing.reductions import StorageWeakRef

from curvcli.linalg.ranks import Group

# Blocks whose gathered weights are held at a time.
_HELD = 2


class _Place(NamedTuple):
    """Where a tensor lies in gathered weights."""

    shard: Tensor
    n: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: Any


class Gatherer:
    """Gathers shards, and holds what it gathered last.

    Args:
        ranks: the processes.
    """

    def __init__(self, ranks: Group) -> None:
        self.ranks = ranks
        self._held: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        """By the address of the shard, and how often it was written to: the shard, and what was gathered from it."""
        self._seen: dict[int, tuple[StorageWeakRef, Tensor, int]] = {}
        """By the address of gathered weights that may still be in use: their storage, the shard, and how many."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Gatherer":
        return self

    def weights(self, shard: Tensor, n: int) -> Tensor:
        """The ``n`` weights of which this process has ``shard``, with their derivative."""
        whole: Tensor = _Gather.apply(shard, self, n)
        return whole

    def gathered(self, shard: Tensor, n: int) -> Tensor:
        """`weights` without a derivative."""
        key = shard.data_ptr(), shard._version
        found = self._held.pop(key, None)
        if found is None:
            while len(self._held) >= _HELD:
                self._held.pop(next(iter(self._held)))
            # The shard is held too, so that no other one can lie in its place.
            found = shard, self.ranks.gathered(shard, n)
            self._seen = {a: s for a, s in self._seen.items() if not s[0].expired()}
            storage = found[1].untyped_storage()
            self._seen[storage.data_ptr()] = StorageWeakRef(storage), shard, n
        self._held[key] = found
        return found[1]

    @contextmanager
    def lean(self) -> Iterator[None]:
        """Graphs that are made here keep the places of gathered weights, not the weights."""

        def pack(tensor: Tensor) -> Tensor | _Place:
            storage, shard, n = self._seen.get(tensor.untyped_storage().data_ptr(), (None, None, 0))
            if storage is None or shard is None or storage.expired():
                return tensor
            return _Place(shard, n, tensor.size(), tensor.stride(), tensor.storage_offset())

        def unpack(kept: Tensor | _Place) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            whole = self.gathered(kept.shard, kept.n)
            return whole.as_strided(kept.size, kept.stride, kept.offset)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield


class _Gather(Function):
    """Weights from shards."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, gatherer: Gatherer, n: int) -> Tensor:
        ctx.gatherer = gatherer
        return gatherer.gathered(shard.detach(), n).detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return _Scatter.apply(grad_outputs[0], ctx.gatherer), None, None


class _Scatter(Function):
    """The transpose of gathering: each process keeps its share of the sum."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, gatherer: Gatherer) -> Tensor:
        ctx.gatherer, ctx.n = gatherer, len(whole)
        return gatherer.ranks.own_of_sum(whole.clone())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _Vector.apply(grad_outputs[0], ctx.gatherer, ctx.n), None


class _Vector(Function):
    """A vector gathered like weights, used once."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, gatherer: Gatherer, n: int) -> Tensor:
        ctx.gatherer = gatherer
        return gatherer.ranks.gathered(part, n)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return _Scatter.apply(grad_outputs[0], ctx.gatherer), None, None
