"""Safetensors: headers are checked against the files before any tensor is read."""

import json
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from curvcli.errors import CheckpointError
from curvcli.loading.checkpoints.checkpoint import Checkpoint, open_safetensors
from curvcli.loading.checkpoints.sources import InFile, TensorInfo

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
    sources = {
        info.name: InFile(path, start + header[info.name]["data_offsets"][0], info)
        for info in sorted(tensors, key=lambda info: info.name)
    }
    return Checkpoint(path, "safetensors", tensors, sources, metadata)


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
