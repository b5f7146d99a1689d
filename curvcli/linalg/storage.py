"""Where long vectors and weights are kept: in the memory of the device, of the host, or in a file."""

import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO

import torch
from torch import Tensor

from curvcli.errors import OutputError

HOST = "host"
# Bytes: torch begins every tensor of a CPU at a multiple of so many.
_ALIGNED = 64


class Rows:
    """Vectors of one length, that nothing has been written to yet.

    Those in a file are mapped: the system keeps in memory what is in use, as far as there is room. The file has no
    name, so that it is gone when the rows are, whatever happens.

    Args:
        count: how many at most.
        length: of each.
        dtype: of the entries.
        device: where, if no place is named.
        place: `HOST`, or the folder of the file.

    Raises:
        OutputError: the file cannot be made.
    """

    def __init__(
        self,
        count: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        place: str | None = None,
    ) -> None:
        self._place = place or ""
        self._bytes = length * dtype.itemsize
        self._file: IO[bytes] | None = None
        where = device if place is None else torch.device("cpu")
        if place is None or place == HOST or count * length == 0:
            self.data_MN = torch.empty(count, length, dtype=dtype, device=where)
            return
        try:
            self._file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115  (lives as long as the rows)
            weakref.finalize(self, self._file.close)
            self._file.truncate(count * self._bytes)
            mapped = mmap.mmap(self._file.fileno(), count * self._bytes)
        except OSError as error:
            raise unusable(place, error) from None
        self.data_MN = torch.frombuffer(mapped, dtype=dtype).view(count, length)

    def reserve(self, index: int) -> None:
        """Take the room of one row on the disk: writing to a full one would end the process without a word.

        Raises:
            OutputError: there is none.
        """
        if self._file is None or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._file.fileno(), index * self._bytes, self._bytes)
        except OSError as error:
            raise unusable(self._place, error) from None


def move_to_file(tensors: Sequence[Tensor], place: str) -> None:
    """Keep the values of some tensors in a nameless file; those that share memory with others stay.

    Args:
        tensors: on the CPU; they are pointed to the file.
        place: its folder.

    Raises:
        OutputError: the file cannot be made, or the disk is full.
    """
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        alone = [
            t for t in tensors if t.dtype == dtype and t.untyped_storage().nbytes() == t.nbytes
        ]
        # Where memory begins decides which kernels run, and so the last digits.
        step = _ALIGNED // dtype.itemsize
        lengths = [-(-t.numel() // step) * step for t in alone]
        rows = Rows(1, sum(lengths), dtype, torch.device("cpu"), place)
        rows.reserve(0)
        for tensor, part in zip(alone, rows.data_MN.view(-1).split(lengths), strict=True):
            tensor.data = part[: tensor.numel()].view(tensor.shape).copy_(tensor.detach())


def unusable(place: str, error: OSError) -> OutputError:
    """What is said of a place that cannot keep vectors."""
    return OutputError(
        f"--offload: nothing can be kept in {place!r}: {error.strerror}",
        "name a folder on a disk with room for them, or 'host' for the host's memory",
    )
