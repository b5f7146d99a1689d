"""Safetensors, single and sharded: headers are checked against the files before any tensor is read."""

import json
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from curvcli.errors import CheckpointError
from curvcli.files import check_regular
from curvcli.loading.checkpoints.archive import read_json
from curvcli.loading.checkpoints.checkpoint import (
    Checkpoint,
    Place,
    TensorInfo,
    open_safetensors,
)

_HEADER_LIMIT = 100_000_000  # the format's own limit


def read_safetensors(path: Path) -> Checkpoint:
    """Open a single file.

    Raises:
        CheckpointError: it is truncated or malformed, or holds no tensors.
    """
    header, start = _read_header(path)
    try:
        with open_safetensors(path) as file:
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is not a valid safetensors file: {error}",
            "save it again; its path must be UTF-8",
        ) from None
    tensors = [
        _tensor_info(name, entry, path) for name, entry in header.items() if name != "__metadata__"
    ]
    if not tensors:
        raise CheckpointError(f"{path.name} contains no tensors", "save the model's state_dict()")
    places = {t.name: Place(path, start + header[t.name]["data_offsets"][0]) for t in tensors}
    return Checkpoint(path, "safetensors", tensors, metadata, places=places)


def _tensor_info(name: str, entry: Any, path: Path) -> TensorInfo:
    try:
        begin, end = entry["data_offsets"]
        return TensorInfo(name, tuple(entry["shape"]), _dtype_name(entry["dtype"]), end - begin)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path.name}: the header's entry for {name!r} is malformed", "save it again"
        ) from None


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file, checked against the file's size, and where the tensors begin."""
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
    return header, 8 + length


_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip


def _dtype_name(code: str) -> str:
    return _DTYPES.get(code, code)


def read_sharded(path: Path) -> Checkpoint:
    """Open the shards that an ``.index.json`` names.

    Raises:
        CheckpointError: it is no index, or its shards are missing, damaged or outside its own folder.
    """
    try:
        weight_map = dict(read_json(path, CheckpointError)["weight_map"])
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{path.name} is not an index of sharded safetensors: no 'weight_map' from names to files",
            "name the .safetensors.index.json file",
        ) from None
    shards: dict[str, Checkpoint] = {}
    for name in dict.fromkeys(weight_map.values()):
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise CheckpointError(
                f"{path.name} names the shard {name!r} outside its own folder",
                "shards lie beside their index",
            )
        shard = path.parent / name
        check_regular(shard, CheckpointError, "shard")
        _stays(path, shard)
        shards[name] = read_safetensors(shard)
    known = {name: {t.name: t for t in shard.tensors} for name, shard in shards.items()}
    tensors: list[TensorInfo] = []
    places: dict[str, Place] = {}
    for tensor, name in weight_map.items():
        found = known[name].get(tensor)
        if found is None:
            raise CheckpointError(
                f"{path.name}: {tensor!r} is not in its shard {name!r}", "copy all shards again"
            )
        tensors.append(found)
        places[tensor] = shards[name].places[tensor]
    return Checkpoint(
        path, "sharded safetensors", tensors, {"shards": str(len(shards))}, places=places
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
