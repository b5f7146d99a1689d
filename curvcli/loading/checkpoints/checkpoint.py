"""What a checkpoint is once it is open: named tensors, of which its header tells names, shapes and dtypes."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from curvcli.errors import CheckpointError, CurvError
from curvcli.loading.checkpoints.selection import choose

# Of a tensor, at most.
_DIMENSIONS = 64

Format = Literal[
    "safetensors",
    "sharded safetensors",
    "torch",
    "sharded torch",
    "torch.distributed",
    "torch.export program",
    "TorchScript",
]


_OPAQUE = {
    getattr(torch, name)
    for name in ("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2", "float4_e2m1fn_x2")
    if hasattr(torch, name)
}
"""Types that hold bits, which torch neither converts nor copies."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


class Place(NamedTuple):
    """Where a tensor lies."""

    path: Path
    start: int


class Stored(Protocol):
    """A tensor that is put together from files when it is asked for."""

    def whole(self) -> Tensor:
        """All of it."""

    def part(self, first: int, last: int) -> Tensor:
        """Entries ``first`` to ``last``, flat, from the files that have them."""


@dataclass
class Checkpoint:
    """Named tensors of one checkpoint, read one at a time where the format allows it."""

    path: Path
    format: Format
    tensors: list[TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    program: torch.nn.Module | None = None
    """The network itself, where the format holds it."""
    places: dict[str, Place] = field(default_factory=dict)
    """Where each tensor is read from when it is asked for, of safetensors."""
    loaded: dict[str, Tensor] = field(default_factory=dict)
    """The tensors, of formats that are read as a whole."""
    stored: Mapping[str, Stored] = field(default_factory=dict)
    """The tensors, of formats that keep each in pieces."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What modules keep besides tensors (`get_extra_state`), by name."""
    files: list[Path] = field(default_factory=list)
    """What it was read from, where that is not one file."""

    @cached_property
    def _known(self) -> dict[str, TensorInfo]:
        return {info.name: info for info in self.tensors}

    def __getitem__(self, name: str) -> Tensor:
        if name in self.loaded:
            return self.loaded[name]
        if name in self.stored:
            return self.stored[name].whole()
        info = self._known[name]
        if len(info.shape) > _DIMENSIONS:
            raise CheckpointError(
                f"{name!r} has {len(info.shape)} dimensions; torch knows {_DIMENSIONS}",
                "reshape it",
            )
        place = self.places[name]
        return _read(place, info, place.start, info.bytes).reshape(info.shape)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors; only one is in memory at a time, where the format allows it."""
        if self.loaded:
            yield from self.loaded.items()
            return
        for name in self.stored:
            yield name, self[name]
        paths = {
            path: i for i, path in enumerate(dict.fromkeys(p.path for p in self.places.values()))
        }
        for name in sorted(self.places, key=lambda n: (paths[self.places[n].path], n)):
            yield name, self[name]

    def pieces(self, name: str, size: int) -> Iterator[Tensor]:
        """The entries of one tensor, flat, in pieces of at most ``size`` bytes."""
        if name not in self.places:
            yield from _cut(self[name].detach(), size)
            return
        info, place = self._known[name], self.places[name]
        for begin in range(0, info.bytes, size):
            yield _read(place, info, place.start + begin, min(size, info.bytes - begin))

    def part(self, name: str, first: int, last: int) -> Tensor:
        """Entries ``first`` to ``last`` of one tensor, flat; no more is read than the format makes necessary."""
        if name in self.loaded:
            return self.loaded[name].detach().reshape(-1)[first:last].clone()
        if name in self.stored:
            return self.stored[name].part(first, last)
        info, place = self._known[name], self.places[name]
        width = info.bytes // max(1, math.prod(info.shape))
        return _read(place, info, place.start + first * width, (last - first) * width)

    def only(self, weights: str) -> None:
        """Keep the tensors whose names start with a key, without it, as `--weights` asks.

        Raises:
            CheckpointError: there are none.
        """
        kept, where = choose({info.name: info for info in self.tensors}, weights, self.path.name)
        self.tensors = [dataclasses.replace(info, name=name) for name, info in kept.items()]
        self.places = {n: self.places[i.name] for n, i in kept.items() if i.name in self.places}
        self.loaded = {n: self.loaded[i.name] for n, i in kept.items() if i.name in self.loaded}
        self.stored = {n: self.stored[i.name] for n, i in kept.items() if i.name in self.stored}
        self.program = None
        self.notes.append(f"the weights were found under {where!r}")

    def sha256(self) -> str:
        """SHA-256 of the file; of a sharded checkpoint, of the shards one after the other."""
        digest = hashlib.sha256()
        for path in self.files or [self.path]:
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()


def _read(place: Place, info: TensorInfo, start: int, size: int) -> Tensor:
    """Entries of a tensor, read and not mapped: a file that is cut meanwhile ends in a sentence, not in a signal."""
    dtype = getattr(torch, info.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(
            f"{place.path.name}: {info.name!r} is of the type {info.dtype}, which torch {torch.__version__} has not",
            "save it in another type",
        )
    raw = torch.empty(size, dtype=torch.uint8)
    with place.path.open("rb", buffering=0) as file:
        file.seek(start)
        view, done = memoryview(raw.numpy().data), 0
        while done < size and (read := file.readinto(view[done:])):
            done += read
    if done < size:
        raise CheckpointError(
            f"{place.path.name} was cut while it was read: {info.name!r} ends after {done} of {size} bytes",
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


def check_plain(tensor: Tensor, name: str, error: type[CurvError]) -> None:
    """A tensor has values of its own, laid out one after the other.

    Raises:
        CurvError: it is sparse, nested, without values, or quantised by channel groups that torch cannot copy.
    """
    kind = (
        "nested" if tensor.is_nested
        else "without values (meta)" if tensor.is_meta
        else str(tensor.layout).removeprefix("torch.") if tensor.layout != torch.strided
        else f"of the type {tensor.dtype}" if tensor.dtype in _OPAQUE
        else None
    )  # fmt: skip
    if kind is not None:
        raise error(
            f"{name} is {kind}, which nothing can be computed with",
            "save it as a dense tensor of numbers",
        )


def tensor_infos(tensors: Mapping[str, Tensor]) -> list[TensorInfo]:
    """What a header would say about these tensors."""
    return [
        TensorInfo(
            n, tuple(t.shape), str(t.dtype).removeprefix("torch."), t.numel() * t.element_size()
        )
        for n, t in tensors.items()
    ]


def open_safetensors(path: Path) -> Any:
    """The library's reader of one file."""
    return safe_open(path, framework="pt", device="cpu")
