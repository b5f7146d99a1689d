"""Where long vectors are kept: in the memory of the device, of the host, or in a file."""

import mmap
import os
import tempfile
import weakref
from typing import IO

import torch

from curvcli.errors import OutputError

HOST = "host"


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


def unusable(place: str, error: OSError) -> OutputError:
    """What is said of a place that cannot keep vectors."""
    return OutputError(
        f"--offload: vectors cannot be kept in {place!r}: {error.strerror}",
        "name a folder on a disk with room for them, or 'host' for the host's memory",
    )
