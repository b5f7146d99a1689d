"""The file of a long run: records one after the other, each whole or left out.

The SHA-256 of each covers the record before, so that a damaged or torn end shows. Of vectors that are divided among
processes a record has the parts of all, behind their lengths: the first process writes what all of them send, and each
reads its own. There is one file, so that no process is ever ahead of another.
"""

import hashlib
import os
import re
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from curvcli.errors import CurvError, OutputError
from curvcli.files import Replacement, check_regular, own_copy
from curvcli.linalg.ranks import ALONE, Ranks, all_see, check_divided
from curvcli.linalg.tensor_file import bytes_of

_MAGIC = b"curvcli-run/1"  # then, where vectors are divided, among how many processes
_FIRST_LINE = re.compile(_MAGIC + rb"(?: of (\d+))?\n")
_HEAD = struct.Struct("<cQ32s32s")  # kind, length of the content, key, digest
_READ = 1 << 24
"""Bytes that are read at a time where a record need not be there as a whole."""
SYNC_SECONDS = 30.0
"""Between two times that the disk is waited for, at least."""
SYNC_SHARE = 20.0
"""So many times as long as that took, at least."""


class Record(NamedTuple):
    """One of the file, without its content."""

    kind: bytes
    key: bytes
    place: int
    length: int


class RecordFile:
    """Records on disk.

    Args:
        path: of the file.
        fingerprint: of what they belong to; a file is only used for the same one.
        ranks: processes that make the run together.

    Raises:
        CurvError: the file is something else, or of another run.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, fingerprint: str, ranks: Ranks) -> None:
        self.problem: str | None = None
        """Why nothing more is written."""
        self.holders = ranks if ranks.parted else ALONE
        self._path, self._sync_at = path, time.monotonic() + SYNC_SECONDS
        self._writes = self.holders.rank == 0
        line = _MAGIC + (f" of {ranks.size}\n" if ranks.parted else "\n").encode()
        self._header = line + hashlib.sha256(fingerprint.encode()).digest()
        self._last, self._end = self._header, len(self._header)
        exists = all_see(path.exists(), path.name, ranks)
        if exists:
            check_regular(path, CurvError, "state")
        if not ranks.parted:
            path = self._path = own_copy(path)
        elif not (self._writes or exists):
            path = Path(os.devnull)
        try:
            mode = ("r+b" if exists else "w+b") if self._writes else "rb"
            self._file: IO[bytes] = path.open(mode)
            try:
                self.records = self._read(self._path.name)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise OutputError(
                f"{str(path)!r} cannot be written: {error.strerror}", "check --state"
            ) from None

    def part_of(self, record: Record) -> bytes | None:
        """What this process has in a record; None where that cannot be read."""
        holders = self.holders
        table, skipped, length = struct.Struct(f"<{holders.size}Q"), 0, record.length
        try:
            self._file.seek(record.place + _HEAD.size)
            if holders.parted:
                lengths = table.unpack(self._file.read(table.size))
                skipped, length = sum(lengths[: holders.rank]), lengths[holders.rank]
            self._file.seek(skipped, os.SEEK_CUR)
            content = self._file.read(length)
        except (OSError, struct.error):
            return None
        return content if len(content) == length else None

    def append(self, kind: bytes, key: bytes, own: bytes | memoryview) -> Record | None:
        """Write a record with what this process has for it, and the others have; None where it cannot be written."""
        if self.problem is not None:
            return None
        holders, place = self.holders, self._end
        lengths = holders.collected([len(own)])
        table = struct.pack(f"<{holders.size}Q", *lengths) if holders.parted else b""
        length = len(table) + sum(lengths)
        digest = _digest(self._last, kind, key, length)
        digest.update(table)
        self._write(place, _HEAD.pack(kind, length, key, bytes(32)) + table)
        at = place + _HEAD.size + len(table)
        # Pieces are exchanges, to which a process comes even where it cannot write.
        for piece in holders.in_turn(flat(own), lengths):
            content = bytes_of(piece)
            digest.update(content)
            self._write(at, content)
            at += len(content)
        self._write(place, _HEAD.pack(kind, length, key, digest.digest()))
        self._sync()
        if self._failed():
            return None
        self._end, self._last = at, digest.digest()
        return Record(kind, key, place, length)

    def rewrite(self, records: Sequence[Record]) -> list[Record]:
        """Put a file of these records in the place of the present one; their places in it."""
        found = list(records)
        if self.problem is None and self._writes:
            try:
                found = self._replace(found)
            except OSError as error:
                self._give_up(error)
        self._failed()
        return found

    def close(self) -> None:
        """Wait until everything is on the disk."""
        self._sync(now=True)
        self._file.close()

    def _write(self, place: int, content: bytes | memoryview) -> None:
        if not self._writes or self.problem is not None:
            return
        try:
            self._file.seek(place)
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _failed(self) -> bool:
        """Whether any process has given up: then all do."""
        if not self.holders.largest(int(self.problem is not None)):
            return False
        self.problem = self.problem or "another process could not write it"
        return True

    def _sync(self, now: bool = False) -> None:
        began = time.monotonic()
        if not self._writes or self.problem is not None or (not now and began < self._sync_at):
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._give_up(error)
        ended = time.monotonic()
        self._sync_at = ended + max(SYNC_SECONDS, SYNC_SHARE * (ended - began))

    def _give_up(self, error: OSError) -> None:
        """The file ends with the last record that is whole; the run goes on without it."""
        self.problem = error.strerror or str(error)

    def _replace(self, former: Sequence[Record]) -> list[Record]:
        made = Replacement(self._path)
        try:
            records, last, end = [], self._header, len(self._header)
            made.file.write(self._header)
            for record in former:
                head_at = end
                made.file.write(bytes(_HEAD.size))
                digest = _digest(last, record.kind, record.key, record.length)
                self._file.seek(record.place + _HEAD.size)
                for content in self._chunks(record.length):
                    digest.update(content)
                    made.file.write(content)
                last, end = digest.digest(), head_at + _HEAD.size + record.length
                if made.file.tell() != end:
                    raise OSError("it has become shorter meanwhile")
                made.file.seek(head_at)
                made.file.write(_HEAD.pack(record.kind, record.length, record.key, last))
                made.file.seek(end)
                records.append(record._replace(place=head_at))
        except BaseException:
            made.discard()
            raise
        made.commit()
        self._file.close()
        self._file = self._path.open("r+b")
        self._last, self._end = last, end
        return records

    def _chunks(self, length: int) -> Iterator[bytes]:
        """The next bytes of the file, some at a time; fewer where it ends before."""
        while length and (content := self._file.read(min(length, _READ))):
            length -= len(content)
            yield content

    def _read(self, name: str) -> list[Record]:
        """All records that are whole; the file is cut after them."""
        header = self._file.read(len(self._header))
        if header and not self._header.startswith(header):
            first_line = _FIRST_LINE.match(header)
            if first_line is None:
                raise CurvError(
                    f"{name} is not a saved state of this command", "name another file by --state"
                )
            check_divided(name, int(first_line.group(1) or 0), self.holders)
            raise CurvError(
                f"{name} belongs to another run: command, matrix, weights, data, loss or dtype differ",
                "delete it, or name another file by --state",
            )
        if len(header) < len(self._header) and self._writes:  # empty, or a run that died at once
            self._file.seek(0)
            self._file.write(self._header)
            self._file.flush()
        records, size = list[Record](), os.fstat(self._file.fileno()).st_size
        while len(head := self._file.read(_HEAD.size)) == _HEAD.size:
            kind, length, key, digest = _HEAD.unpack(head)
            if self._end + _HEAD.size + length > size:
                break
            found = _digest(self._last, kind, key, length)
            for content in self._chunks(length):
                found.update(content)
            if found.digest() != digest:
                break
            records.append(Record(kind, key, self._end, length))
            self._end, self._last = self._end + _HEAD.size + length, digest
        if self.holders.largest(self._end) != -self.holders.largest(-self._end):
            raise CurvError(
                f"the processes do not read the same in {name}",
                "name a file by --state that all of them see",
            )
        self.damaged = max(0, size - self._end)
        if self._writes:
            self._file.truncate(self._end)
        return records


def _digest(last: bytes, kind: bytes, key: bytes, length: int) -> Any:
    """Of a record, to be updated with its content."""
    digest = hashlib.sha256(last)
    digest.update(kind + key + struct.pack("<Q", length))
    return digest


def flat(content: bytes | memoryview) -> Tensor:
    """Bytes as a tensor."""
    return torch.frombuffer(bytearray(content) or bytearray(1), dtype=torch.uint8)[: len(content)]
