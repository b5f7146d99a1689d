"""Files of tensors that are data: ``.npz``, ``.npy``, ``.safetensors`` and ``.pt``."""

import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvcli.errors import DataError
from curvcli.files import check_regular
from curvcli.loading.checkpoints.archive import check_archive
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.checkpoints.pickled import load_torch
from curvcli.machine.memory import not_of_memory


def read_file(
    path: Path, unsafe_pickle: bool, chosen: Callable[[Iterable[str]], Collection[str]]
) -> dict[str, Any] | tuple[Any, ...]:
    """Named tensors, or tensors in their order.

    Args:
        path: ``.npz``, ``.npy``, ``.safetensors`` or ``.pt``.
        unsafe_pickle: let a ``.pt`` file run code.
        chosen: of the names in the file, those that are used.

    Raises:
        DataError: it is missing, damaged, of another kind, or holds something else.
    """
    check_regular(path, DataError, "data file")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _read_npz(path, chosen)
    if suffix == ".npy":
        return (_read_npy(path),)
    if suffix == ".safetensors":
        opened = open_checkpoint(path)
        return {name: opened[name] for name in sorted(chosen(t.name for t in opened.tensors))}
    if suffix in (".pt", ".pth"):
        content = load_torch(path, unsafe_pickle, "data file")
        if isinstance(content, Tensor):
            return (content,)
        if isinstance(content, dict | tuple | list) and content:
            if not isinstance(content, dict):
                return tuple(content)
            names = chosen(map(str, content))
            return {key: value for key, value in content.items() if str(key) in names}
        raise DataError(
            f"{path.name} holds {type(content).__name__}, not tensors", "save a dict of tensors"
        )
    raise DataError(
        f"{path.name}: data of the kind {suffix or '(no suffix)'!r} is not known",
        "use .npz, .npy, .safetensors, .pt, .csv, .parquet, .txt, .jsonl, a folder of images, or module:attribute",
    )


def _read_npy(path: Path) -> Tensor:
    try:
        with path.open("rb") as file:
            return torch.from_numpy(
                _native(np.lib.format.read_array(file, allow_pickle=False), path.stem, path)
            )
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(error, path, "np.save") from None


def _unreadable(error: Exception, path: Path, saved: str) -> DataError:
    """A damaged header makes the parsers raise anything."""
    not_of_memory(error)
    reason = " ".join(str(error).split())[:160]
    return DataError(
        f"{path.name} is not a readable {path.suffix} file: {reason}",
        f"save plain arrays with {saved}; object arrays are refused because they can run code",
    )


def _read_npz(path: Path, chosen: Callable[[Iterable[str]], Collection[str]]) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            check_archive(path, DataError)
            _check_arrays(archive, path)
            arrays = {name: _native(archive[name], name, path) for name in chosen(archive.files)}
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(error, path, "np.savez") from None
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _native(array: Any, name: str, path: Path) -> "np.ndarray[Any, Any]":
    """The array in this machine's byte order, whole numbers in a type that torch computes with."""
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path.name}: the entry {name!r} is no array", "save it by np.savez")
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{path.name}: {name!r} is not numbers", "keep text and objects out of the file"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise DataError(
            f"{path.name}: {name!r} is {array.dtype}, which torch has not", "save it as float64"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.size and int(array.max()) >= 2**63:
            raise DataError(
                f"{path.name}: {name!r} holds numbers of 2**63 and more", "save it as int64"
            )
        return array.astype(np.int64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_arrays(archive: Any, path: Path) -> None:
    """No array's header promises more than its entry holds."""
    for entry in archive.zip.infolist():
        if not entry.filename.endswith(".npy"):
            continue
        with archive.zip.open(entry) as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read is None:
                continue
            shape, _, dtype = read(file)
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > entry.file_size:
            raise DataError(
                f"{path.name}: the header of {entry.filename!r} promises "
                f"{math.prod(shape) * dtype.itemsize} bytes, the entry has {entry.file_size}",
                "save it again",
            )
