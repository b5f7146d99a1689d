"""What a checkpoint is once it is open: named tensors, of which its header tells names, shapes and dtypes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

Format = Literal[
    "safetensors", "sharded safetensors", "torch", "torch.export program", "TorchScript"
]


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


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
    files: dict[str, Path] = field(default_factory=dict)
    """The file that each tensor is read from when it is asked for, of safetensors."""
    loaded: dict[str, Tensor] = field(default_factory=dict)
    """The tensors, of formats that are read as a whole."""

    def __getitem__(self, name: str) -> Tensor:
        if name in self.loaded:
            return self.loaded[name]
        with open_safetensors(self.files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors; of safetensors only one is in memory at a time."""
        if self.loaded:
            yield from self.loaded.items()
            return
        for path in dict.fromkeys(self.files.values()):
            with open_safetensors(path) as file:
                for name in file.keys():  # noqa: SIM118  (not a dict)
                    if self.files.get(name) == path:
                        yield name, file.get_tensor(name)

    def sha256(self) -> str:
        """SHA-256 of the file; of a sharded checkpoint, of the shards one after the other."""
        digest = hashlib.sha256()
        for path in dict.fromkeys(self.files.values()) or [self.path]:
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()


def tensor_infos(tensors: dict[str, Tensor]) -> list[TensorInfo]:
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
