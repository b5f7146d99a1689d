"""Every checkpoint format -> named tensors. Nothing in a file runs unless the user says so."""

import hashlib
import json
import pickle
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from curvcli.errors import CheckpointError, some
from curvcli.target.archive import EXPANSION_BYTES, archive_kind, read_json

Format = Literal[
    "safetensors", "sharded safetensors", "torch", "torch.export program", "TorchScript"
]

NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "ema",
    "ema_state_dict",
    "params",
    "weights",
    "net",
)
_HEADER_LIMIT = 100_000_000  # the format's own limit


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
    _files: dict[str, Path] = field(default_factory=dict)
    _loaded: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._loaded:
            return self._loaded[name]
        with _open_safetensors(self._files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors; of safetensors only one is in memory at a time."""
        if self._loaded:
            yield from self._loaded.items()
            return
        for path in dict.fromkeys(self._files.values()):
            with _open_safetensors(path) as file:
                for name in file.keys():  # noqa: SIM118  (not a dict)
                    if self._files.get(name) == path:
                        yield name, file.get_tensor(name)

    def sha256(self) -> str:
        """SHA-256 of the file; of a sharded checkpoint, of the shards one after the other."""
        digest = hashlib.sha256()
        for path in dict.fromkeys(self._files.values()) or [self.path]:
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()


def open_checkpoint(path: Path, unsafe_pickle: bool = False) -> Checkpoint:
    """Open a checkpoint of any known format, recognised by its content.

    Args:
        path: ``.safetensors``, its ``.index.json``, a directory with one of these, a PyTorch file, a
            ``torch.export`` program or TorchScript.
        unsafe_pickle: let a PyTorch file run the code it contains.

    Raises:
        CheckpointError: missing, truncated, not what its name says, or a pickle that needs code.
    """
    if path.is_dir():
        path = _in_directory(path)
    if not path.exists():
        raise CheckpointError(f"there is no file {str(path)!r}", "check the path")
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {error.strerror}", "check its permissions"
        ) from None
    kind = _sniff(head, path)
    if path.suffix == ".safetensors" and kind != "safetensors":
        raise CheckpointError(
            f"{path.name} is named .safetensors but holds {_KINDS[kind]}",
            "export it as safetensors, or rename it to what it is (.pt)",
        )
    if kind == "safetensors":
        return _safetensors(path)
    if kind == "json":
        return _sharded(path)
    if kind == "zip" and (inner := archive_kind(path)) != "torch":
        return _program(path, inner, unsafe_pickle)
    if kind in ("zip", "pickle"):
        return _torch(path, unsafe_pickle)
    raise CheckpointError(
        f"{path.name} holds {_KINDS[kind]}, not a checkpoint",
        "expected safetensors (also sharded, by its .index.json) or a PyTorch .pt/.pth file",
    )


_Kind = Literal["safetensors", "json", "zip", "pickle", "lfs", "empty", "unknown"]
_KINDS: dict[_Kind, str] = {
    "safetensors": "safetensors",
    "json": "JSON",
    "zip": "a zip archive (a PyTorch file?)",
    "pickle": "a Python pickle",
    "lfs": "a Git LFS pointer instead of the weights (run 'git lfs pull')",
    "empty": "nothing (0 bytes)",
    "unknown": "an unknown format",
}


def _sniff(head: bytes, path: Path) -> _Kind:
    if not head:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "lfs"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "pickle"
    if path.suffix == ".safetensors" or (len(head) > 8 and head[8:9] == b"{"):
        return "safetensors"
    if head.lstrip()[:1] == b"{":
        return "json"
    return "unknown"


def _in_directory(path: Path) -> Path:
    for pattern in (
        "model.safetensors.index.json", "model.safetensors", "adapter_model.safetensors", "pytorch_model.bin",
        "*.safetensors.index.json", "*.safetensors", "*.pt2", "*.pt", "*.pth", "*.ckpt", "*.bin",
    ):  # fmt: skip
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(
                f"the directory {str(path)!r} holds {len(found)} checkpoints: {some(f.name for f in found)}",
                "name one of them",
            )
    raise CheckpointError(f"the directory {str(path)!r} holds no checkpoint", "name the file")


def _open_safetensors(path: Path) -> Any:
    return safe_open(path, framework="pt", device="cpu")


def _safetensors(path: Path) -> Checkpoint:
    header = _read_header(path)
    try:
        with _open_safetensors(path) as file:
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is not a valid safetensors file: {error}", "save it again"
        ) from None
    tensors = [
        _tensor_info(name, entry, path) for name, entry in header.items() if name != "__metadata__"
    ]
    if not tensors:
        raise CheckpointError(f"{path.name} contains no tensors", "save the model's state_dict()")
    return Checkpoint(
        path, "safetensors", tensors, metadata, _files={t.name: path for t in tensors}
    )


def _tensor_info(name: str, entry: Any, path: Path) -> TensorInfo:
    try:
        begin, end = entry["data_offsets"]
        return TensorInfo(name, tuple(entry["shape"]), _dtype_name(entry["dtype"]), end - begin)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path.name}: the header's entry for {name!r} is malformed", "save it again"
        ) from None


def _read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, checked against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(
                f"{path.name} is truncated: {size} bytes, no header", "copy it again"
            )
        (length,) = struct.unpack("<Q", prefix)
        if length > _HEADER_LIMIT:
            raise CheckpointError(
                f"{path.name} is not a safetensors file: its header would be {length} bytes long",
                "check what the file is",
            )
        if 8 + length > size:
            raise CheckpointError(
                f"{path.name} is truncated: its header needs {8 + length} bytes, the file has {size}",
                "copy it again",
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"{path.name} is not a safetensors file: its header is not JSON", "save it again"
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path.name} is not a safetensors file: its header is not an object", "save it again"
        )
    ends = [
        e["data_offsets"][1]
        for k, e in header.items()
        if k != "__metadata__"
        and isinstance(e, dict)
        and isinstance(e.get("data_offsets"), list)
        and len(e["data_offsets"]) == 2
        and isinstance(e["data_offsets"][1], int)
    ]
    if ends and 8 + length + max(ends) > size:
        raise CheckpointError(
            f"{path.name} is truncated: its header promises {8 + length + max(ends)} bytes, the file has {size}",
            "copy it again, or wait until it is written",
        )
    return header


_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def _dtype_name(code: str) -> str:
    return _SAFETENSORS_DTYPES.get(code, code)


def _sharded(path: Path) -> Checkpoint:
    try:
        weight_map = dict(read_json(path, CheckpointError)["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{path.name} is not an index of sharded safetensors: no 'weight_map'",
            "name the .safetensors.index.json file",
        ) from None
    shards: dict[str, Checkpoint] = {}
    for name in dict.fromkeys(weight_map.values()):
        if not isinstance(name, str) or "/" in name or "\\" in name or name in ("", ".", ".."):
            raise CheckpointError(
                f"{path.name} names the shard {name!r} outside its own folder",
                "shards lie beside their index",
            )
        shard = path.parent / name
        if not shard.is_file():
            raise CheckpointError(
                f"{path.name} names the shard {name!r}, which is not there", "copy all shards"
            )
        _stays(path, shard)
        shards[name] = _safetensors(shard)
    tensors: list[TensorInfo] = []
    files: dict[str, Path] = {}
    for tensor, name in weight_map.items():
        found = next((t for t in shards[name].tensors if t.name == tensor), None)
        if found is None:
            raise CheckpointError(
                f"{path.name}: {tensor!r} is not in its shard {name!r}", "copy all shards again"
            )
        tensors.append(found)
        files[tensor] = path.parent / name
    return Checkpoint(
        path, "sharded safetensors", tensors, {"shards": str(len(shards))}, _files=files
    )


def _stays(index: Path, shard: Path) -> None:
    """A link leads to the index's own folder, or to where the Hugging Face cache keeps its files."""
    folder, place = index.resolve().parent, shard.resolve().parent
    own = index.parent.resolve()
    cache = own.parent.parent / "blobs" if own.parent.name == "snapshots" else own
    if place not in (folder, own, cache):
        raise CheckpointError(
            f"{index.name} names the shard {shard.name!r}, a link that leads outside its own folder",
            "copy the shard itself",
        )


def load_torch(path: Path, unsafe_pickle: bool, what: str) -> Any:
    """``torch.load`` on the CPU; code inside runs only with ``unsafe_pickle``.

    Raises:
        CheckpointError: the file is damaged, or needs code to be run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on protocols; damage is reported below
            return torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)
    except pickle.UnpicklingError as error:
        # torch puts its long advice after the first sentence; the name of the global is what matters.
        reason = next(
            (line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line),
            "",
        ).strip()
        if "GLOBAL" in reason or "Unsupported" in reason or "weights_only" in str(error).lower():
            raise CheckpointError(
                f"the {what} {path.name} is a pickle that needs to run code: {_shorten(reason or str(error))}",
                "if you trust its origin, pass --unsafe-pickle; better: save a state_dict as safetensors",
            ) from None
        raise CheckpointError(
            f"the {what} {path.name} is damaged: {_shorten(str(error))}", "copy it again"
        ) from None
    except Exception as error:  # a damaged pickle makes its parser raise anything
        raise CheckpointError(
            f"the {what} {path.name} is truncated or damaged: {_shorten(str(error)) or type(error).__name__}",
            "copy it again",
        ) from None


def _shorten(text: str, limit: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _program(
    path: Path, kind: Literal["program", "torchscript"], unsafe_pickle: bool
) -> Checkpoint:
    """A file that holds the network as well as its weights."""
    from curvcli.target.exported import load_program
    from curvcli.target.torchscript import ScriptProgram, load_torchscript

    load = load_program if kind == "program" else load_torchscript
    module = load(path, unsafe_pickle)
    notes = []
    if isinstance(module, ScriptProgram) and module.stateful:
        notes.append(
            f"the program keeps {some(module.stateful)} between calls: every call starts from what the file holds"
        )
    tensors = module.state_dict()
    form: Format = "torch.export program" if kind == "program" else "TorchScript"
    return Checkpoint(
        path, form, _infos(tensors), notes=notes, program=module, _loaded=dict(tensors)
    )


def _infos(tensors: dict[str, Tensor]) -> list[TensorInfo]:
    return [
        TensorInfo(
            n, tuple(t.shape), str(t.dtype).removeprefix("torch."), t.numel() * t.element_size()
        )
        for n, t in tensors.items()
    ]


def _torch(path: Path, unsafe_pickle: bool) -> Checkpoint:
    content = load_torch(path, unsafe_pickle, "checkpoint")
    notes: list[str] = []
    module = content if isinstance(content, torch.nn.Module) else None
    if module is not None:
        content = module.state_dict()
        notes.append("the checkpoint is a whole pickled module")
    tensors, where = _find_state_dict(content)
    if not tensors and isinstance(content, dict) and content.keys() >= {"state", "param_groups"}:
        raise CheckpointError(
            f"{path.name} holds the state of an optimizer, without the weights",
            "name the file with the model's state_dict, or the directory it lies in",
        )
    if not tensors:
        keys = (
            some(str(k) for k in content) if isinstance(content, dict) else type(content).__name__
        )
        raise CheckpointError(
            f"no weights found in {path.name}; it contains {keys}",
            f"expected a state_dict, plain or under one of {', '.join(NESTED)}",
        )
    if where:
        notes.append(f"the weights were found under {where!r}")
    _check_sizes(tensors, path)
    return Checkpoint(path, "torch", _infos(tensors), notes=notes, program=module, _loaded=tensors)


def _check_sizes(tensors: dict[str, Tensor], path: Path) -> None:
    """No tensor repeats a small storage until it would fill the memory."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            continue
        size = tensor.numel() * tensor.element_size()
        if size > max(EXPANSION_BYTES, tensor.untyped_storage().nbytes()):
            raise CheckpointError(
                f"{path.name}: {name!r} would take {size} bytes but stores {tensor.untyped_storage().nbytes()}",
                "save its values: tensor.contiguous()",
            )


def _find_state_dict(content: Any, where: str = "") -> tuple[dict[str, Tensor], str]:
    """The first mapping of names to tensors, at the top or under a usual key."""
    if not isinstance(content, dict):
        return {}, where
    if hasattr(content, "keys") and content and all(isinstance(k, str) for k in content):
        tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
        nested = [k for k in NESTED if isinstance(content.get(k), dict | torch.nn.Module)]
        if tensors and not nested:
            return tensors, where
        for key in nested:
            inner = content[key]
            inner = inner.state_dict() if isinstance(inner, torch.nn.Module) else inner
            found, place = _find_state_dict(inner, f"{where}.{key}".lstrip("."))
            if found:
                return found, place
        return tensors, where
    return {}, where
