"""Safetensors files written piece by piece: they may be larger than the memory, or put together from processes."""

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvcli.files import Replacement
from curvcli.linalg.ranks import ALONE, Ranks

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8",
}  # fmt: skip


class Stored(NamedTuple):
    """A tensor of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Tensor]]
    """Its entries one after the other."""

    @classmethod
    def of(cls, tensor: Tensor) -> "Stored":
        """One that is there as a whole."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: iter([tensor]))


def write_tensors(
    path: Path, tensors: Mapping[str, Stored], metadata: dict[str, str], ranks: Ranks = ALONE
) -> None:
    """Write a file; a temporary name is renamed at the end.

    The layout is that of the format's description: length of the header, header, then the tensors, widest entries
    first, so that each begins at a multiple of its entries' size.

    Args:
        path: where to.
        tensors: what is written, by name.
        metadata: of the header.
        ranks: processes that put the pieces together; all of them go through them, and the first one writes.

    Raises:
        OSError: it cannot be written, in all processes.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end, ordered = 0, sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in ordered:
        dtype, shape, _ = tensors[name]
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {
            "dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file = _Attempt(path)
    try:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            # Pieces are exchanges, to which a process comes even where it cannot write.
            for piece in tensors[name].pieces():
                file.write(bytes_of(piece))
        file.commit()
    except BaseException:
        file.discard()
        raise
    if ranks.largest(int(file.problem is not None)):
        raise file.problem or OSError(errno.EIO, "another process could not write it")


class _Attempt:
    """A `Replacement` that keeps its first problem and does nothing more then."""

    def __init__(self, path: Path) -> None:
        self.problem: OSError | None = None
        self._made: Replacement | None = None
        try:
            self._made = Replacement(path)
        except OSError as error:
            self.problem = error

    def write(self, content: bytes | memoryview) -> None:
        """Write further."""
        if self._made is not None:
            try:
                self._made.file.write(content)
            except OSError as error:
                self.problem = error
                self.discard()

    def commit(self) -> None:
        """Put the file in its place."""
        if self._made is not None:
            try:
                self._made.commit()
            except OSError as error:
                self.problem = error

    def discard(self) -> None:
        """Remove what was written."""
        if self._made is not None:
            self._made.discard()
            self._made = None


def bytes_of(tensor: Tensor) -> memoryview:
    """Those of its entries, where they are if they lie on the host."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
