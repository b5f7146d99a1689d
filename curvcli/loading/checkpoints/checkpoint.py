"""What a checkpoint is once it is open: named tensors, of which its header tells names, shapes and dtypes."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from curvcli.errors import CurvError
from curvcli.loading.checkpoints.selection import choose
from curvcli.loading.checkpoints.sources import Source, TensorInfo

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


@dataclass
class Checkpoint:
    """Named tensors of one checkpoint, read one at a time where the format allows it."""

    path: Path
    format: Format
    tensors: list[TensorInfo]
    sources: Mapping[str, Source]
    """Where each tensor comes from, in the order in which they are best read."""
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    program: torch.nn.Module | None = None
    """The network itself, where the format holds it."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What modules keep besides tensors (`get_extra_state`), by name."""
    files: list[Path] = field(default_factory=list)
    """What it was read from, where that is not one file."""

    def __getitem__(self, name: str) -> Tensor:
        return self.sources[name].whole()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors; only one is in memory at a time, where the format allows it."""
        return ((name, source.whole()) for name, source in self.sources.items())

    def pieces(self, name: str, size: int) -> Iterator[Tensor]:
        """The entries of one tensor, flat, in pieces of at most ``size`` bytes."""
        return self.sources[name].pieces(size)

    def part(self, name: str, first: int, last: int) -> Tensor:
        """Entries ``first`` to ``last`` of one tensor, flat; no more is read than the format makes necessary."""
        return self.sources[name].part(first, last)

    def only(self, weights: str) -> None:
        """Keep the tensors whose names start with a key, without it, as `--weights` asks.

        Raises:
            CheckpointError: there are none.
        """
        kept, where = choose({info.name: info for info in self.tensors}, weights, self.path.name)
        self.tensors = [dataclasses.replace(info, name=name) for name, info in kept.items()]
        new = {info.name: name for name, info in kept.items()}
        self.sources = {new[n]: source for n, source in self.sources.items() if n in new}
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
