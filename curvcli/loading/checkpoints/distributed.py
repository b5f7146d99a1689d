"""Directories that ``torch.distributed.checkpoint`` writes: pieces of tensors in several files, and an index.

The index (``.metadata``) is a pickle. It is read by an unpickler that makes records instead of the classes it names,
and knows no function; so nothing in it runs.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvcli.errors import CheckpointError, CurvError
from curvcli.files import check_regular
from curvcli.loading.checkpoints.checkpoint import Checkpoint, tensor_infos
from curvcli.loading.checkpoints.pickled import found_under
from curvcli.loading.checkpoints.selection import select
from curvcli.loading.checkpoints.sharded import check_shard
from curvcli.loading.checkpoints.sources import Source
from curvcli.machine.memory import not_of_memory

INDEX = ".metadata"
_INDEX_BYTES = 1 << 28
_CONVERT = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIRECTORY weights.pt"
_CLASSES = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout"),
    *(("pathlib", f"{kind}Path") for kind in ("Posix", "Windows")),
    *(("pathlib._local", f"{kind}Path") for kind in ("Posix", "Windows")),
}  # fmt: skip


class _Record:
    """Stands for an object of a class that the index names: what it was made from, and what it holds."""

    kind: str
    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any) -> "_Record":
        made = super().__new__(cls)
        made.args = args
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Any:
        """An attribute; None where it has the value of its class."""
        return self.state.get(name)


class _Unpickler(pickle._Unpickler):
    """In Python: that in C fills the memory where a pickle asks for it."""

    def find_class(self, module: str, name: str) -> Any:
        """A record for the classes of an index; nothing else.

        Raises:
            UnpicklingError: any other name.
        """
        if (module, name) in _CLASSES:
            return type(name, (_Record,), {"kind": name})
        if module == "torch" and name == "Size":
            return tuple
        found = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it needs {module}.{name}")


class _Piece(NamedTuple):
    """A part of a tensor, and where it lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    start: int
    length: int


@dataclass(frozen=True)
class _Stored(Source):
    """A tensor as the index describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[_Piece]

    def check(self) -> None:
        """What the index alone says against it.

        Raises:
            CheckpointError: it is larger than what is stored, or pieces are missing.
        """
        size = math.prod(self.shape) * self.dtype.itemsize
        if size > sum(piece.length for piece in self.chunks):
            raise CheckpointError(
                f"{self.name!r} would take {size} bytes, more than is stored of it",
                "copy all files again",
            )
        if sum(math.prod(piece.sizes) for piece in self.chunks) < math.prod(self.shape):
            raise self._missing()

    def whole(self) -> Tensor:
        """The tensor from its pieces, which must tile it."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        covered = torch.zeros(self.shape, dtype=torch.bool)
        for piece in self.chunks:
            place = tuple(slice(o, o + s) for o, s in zip(piece.offsets, piece.sizes, strict=True))
            whole[place] = self._values(piece)
            covered[place] = True
        if not bool(covered.all()):
            raise self._missing()
        return whole

    def part(self, first: int, last: int) -> Tensor:
        """Entries ``first`` to ``last``, flat; where pieces hold whole rows, from those alone that have them."""
        if any(piece.sizes[1:] != self.shape[1:] for piece in self.chunks):
            return self.whole().reshape(-1)[first:last].clone()
        row = math.prod(self.shape[1:])
        part = torch.empty(last - first, dtype=self.dtype)
        end = 0
        for piece in sorted(self.chunks, key=lambda p: p.offsets):
            begin = row * sum(piece.offsets[:1])
            if begin != end:
                raise self._missing()
            end = begin + math.prod(piece.sizes)
            inside = slice(max(first, begin), min(last, end))
            if inside.start < inside.stop:
                values = self._values(piece).reshape(-1)
                part[inside.start - first : inside.stop - first] = values[
                    inside.start - begin : inside.stop - begin
                ]
        if last > end:
            raise self._missing()
        return part

    def _values(self, piece: _Piece) -> Tensor:
        try:
            values = _read(piece)
        except CurvError:
            raise
        except Exception as error:  # a piece that lies makes anything happen
            raise _unreadable(piece.path.parent, error) from None
        if tuple(values.shape) != piece.sizes or values.dtype != self.dtype:
            raise CheckpointError(
                f"{piece.path.name}: a piece of {self.name!r} is not as the index says",
                "copy it again",
            )
        return values

    def _missing(self) -> CheckpointError:
        return CheckpointError(
            f"pieces of {self.name!r} are missing in the index", "save the checkpoint again"
        )


def read_distributed(folder: Path, weights: str | None = None) -> Checkpoint:
    """Open a directory of ``torch.distributed.checkpoint.save``; states of optimizers are left aside.

    Args:
        folder: with ``.metadata`` and the ``.distcp`` files.
        weights: which of several sets of weights.

    Raises:
        CheckpointError: the index needs code, is damaged, or does not fit the files.
    """
    index = folder / INDEX
    check_regular(index, CheckpointError, "index")
    try:
        stored, content = _described(index)
        chosen, where, others = select(content, weights, folder.name)
        names = {id(t): n for n, t in _tensors(content)}
        taken = {name: stored[names[id(t)]] for name, t in chosen.items()}
        for one in taken.values():
            one.check()
    except CurvError:
        raise
    except Exception as error:  # an index that lies makes anything happen
        raise _unreadable(folder, error) from None
    if not taken:
        raise CheckpointError(
            f"{folder.name} holds no weights", "save the model's state_dict() in it"
        )
    files = sorted({piece.path for s in taken.values() for piece in s.chunks})
    return Checkpoint(
        folder,
        "torch.distributed",
        tensor_infos(chosen),
        taken,
        notes=found_under(where, others),
        files=[index, *files],
    )


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    not_of_memory(error)
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return CheckpointError(
        f"{folder.name} is no directory of torch.distributed.checkpoint that can be read: {reason}",
        f"copy it again; if you trust its origin: {_CONVERT}",
    )


def _described(index: Path) -> tuple[dict[str, _Stored], dict[str, Any]]:
    """Tensors by their flat names; the mappings they came from, with tensors without values."""
    if index.stat().st_size > _INDEX_BYTES:
        raise CheckpointError(f"{index} is larger than {_INDEX_BYTES} bytes", "check what it is")
    metadata = _Unpickler(io.BytesIO(index.read_bytes())).load()
    lies: dict[tuple[str, Any], _Record] = {
        (key["fqn"], key["offset"]): info for key, info in metadata["storage_data"].items()
    }
    paths = metadata["planner_data"] or {}
    stored: dict[str, _Stored] = {}
    content: dict[str, Any] = {}
    for name, entry in metadata["state_dict_metadata"].items():
        path = [str(part) for part in paths.get(name, (name,))]
        inner = content
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        if entry.kind != "TensorStorageMetadata":
            inner[path[-1]] = None
            continue
        shape, dtype = tuple(map(int, entry["size"])), _dtype(entry["properties"])
        pieces = [_piece(index, chunk, lies[name, chunk["offsets"]]) for chunk in entry["chunks"]]
        stored[name] = _Stored(name, shape, dtype, pieces)
        inner[path[-1]] = torch.empty(shape, dtype=dtype, device="meta")
        inner[path[-1]].stored_as = name
    return stored, content


def _tensors(content: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for value in content.values():
        if isinstance(value, dict):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value.stored_as, value  # type: ignore[attr-defined]


def _dtype(properties: _Record) -> torch.dtype:
    state = properties.state
    found = state[0] if isinstance(state, tuple) else state["dtype"]
    assert isinstance(found, torch.dtype)
    return found


def _piece(index: Path, chunk: _Record, info: _Record) -> _Piece:
    if info.state.get("transform_descriptors"):
        raise CheckpointError(
            f"{index.parent.name} is compressed or encrypted by an extension of torch.distributed.checkpoint",
            f"convert it: {_CONVERT}",
        )
    path = check_shard(index, str(info["relative_path"]))
    start, length = int(info["offset"]), int(info["length"])
    if start < 0 or length < 0 or start + length > path.stat().st_size:
        raise CheckpointError(
            f"{path.name} is truncated: the index promises {start + length} bytes, it has {path.stat().st_size}",
            "copy it again, or wait until it is written",
        )
    return _Piece(tuple(chunk["offsets"]), tuple(chunk["sizes"]), path, start, length)


def _read(piece: _Piece) -> Tensor:
    """One piece, written by ``torch.save``."""
    with piece.path.open("rb") as file:
        file.seek(piece.start)
        content = io.BytesIO(file.read(piece.length))
    with zipfile.ZipFile(content) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > piece.length:
            raise CheckpointError(
                f"{piece.path.name} would expand to more than it stores", "get it from its author"
            )
    content.seek(0)
    values = torch.load(content, map_location="cpu", weights_only=True)
    assert isinstance(values, Tensor)
    return values.detach()
