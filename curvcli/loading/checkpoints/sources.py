"""Where the tensors of a checkpoint come from: memory, or a file that is read when one is asked for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from curvcli.errors import CheckpointError

# Of a tensor, at most.
_DIMENSIONS = 64


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


class Source(ABC):
    """A tensor, or what it can be read from."""

    @abstractmethod
    def whole(self) -> Tensor:
        """All of it."""

    @abstractmethod
    def part(self, first: int, last: int) -> Tensor:
        """Entries ``first`` to ``last``, flat."""

    def pieces(self, size: int) -> Iterator[Tensor]:
        """The entries, flat, in pieces of at most ``size`` bytes."""
        return _cut(self.whole().detach(), size)


@dataclass(frozen=True)
class InMemory(Source):
    """A tensor that was read with the whole file."""

    tensor: Tensor

    def whole(self) -> Tensor:
        """See `Source.whole`."""
        return self.tensor

    def part(self, first: int, last: int) -> Tensor:
        """See `Source.part`."""
        return self.tensor.detach().reshape(-1)[first:last].clone()


@dataclass(frozen=True)
class InFile(Source):
    """A tensor whose bytes lie in a file one after the other, from ``start`` on."""

    path: Path
    start: int
    info: TensorInfo

    def whole(self) -> Tensor:
        """See `Source.whole`."""
        shape = self.info.shape
        if len(shape) > _DIMENSIONS:
            raise CheckpointError(
                f"{self.info.name!r} has {len(shape)} dimensions; torch knows {_DIMENSIONS}",
                "reshape it",
            )
        return self._read(0, self.info.bytes).reshape(shape)

    def part(self, first: int, last: int) -> Tensor:
        """See `Source.part`."""
        width = self.info.bytes // max(1, math.prod(self.info.shape))
        return self._read(first * width, (last - first) * width)

    def pieces(self, size: int) -> Iterator[Tensor]:
        """See `Source.pieces`."""
        for begin in range(0, self.info.bytes, size):
            yield self._read(begin, min(size, self.info.bytes - begin))

    def _read(self, begin: int, size: int) -> Tensor:
        """Bytes of it, read and not mapped: a file that is cut meanwhile ends in a sentence, not in a signal."""
        dtype = getattr(torch, self.info.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(
                f"{self.path.name}: {self.info.name!r} is of the type {self.info.dtype}, which torch "
                f"{torch.__version__} has not",
                "save it in another type",
            )
        raw = torch.empty(size, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start + begin)
            view, done = memoryview(raw.numpy().data), 0
            while done < size and (read := file.readinto(view[done:])):
                done += read
        if done < size:
            raise CheckpointError(
                f"{self.path.name} was cut while it was read: {self.info.name!r} ends after {done} of {size} bytes",
                "wait until it is written, or copy it again",
            )
        return raw.view(dtype)


def _cut(tensor: Tensor, size: int) -> Iterator[Tensor]:
    """Flat pieces; of a tensor that repeats a small storage, no more than one piece is ever made."""
    count = -(-tensor.numel() * tensor.element_size() // size)
    if count <= 1:
        yield tensor.reshape(-1)
        return
    longest = max(range(tensor.dim()), key=lambda d: tensor.shape[d])
    for part in tensor.chunk(min(count, tensor.shape[longest]), longest):
        yield from _cut(part, size)


def in_memory(tensors: Mapping[str, Tensor]) -> dict[str, Source]:
    """The sources of tensors that are there already."""
    return {name: InMemory(tensor) for name, tensor in tensors.items()}
