"""A long run on disk, as the log of its products: a run that is started again finds its first products there.

Everything between products is deterministic, so that a run that takes its products from the log goes the same way to
the bit and goes on where the log ends. Products are bound to their vectors: one of another vector is made anew, and
what the log has from there on is dropped. Of a finished step only its result stays.

A file is a header and records. The SHA-256 of each covers the record before, so that a damaged or torn end shows.
"""

import hashlib
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from curvcli.errors import CurvError, OutputError
from curvcli.files import Replacement, check_regular, own_copy
from curvcli.linalg.operator import SymmetricOperator, offload_of, ranks_of

_MAGIC = b"curvcli-run/1\n"
_HEAD = struct.Struct("<cQ32s32s")  # kind, length of the content, key, digest
_PRODUCT, _BEGUN, _DONE = b"P", b"B", b"D"
SYNC_SECONDS = 30.0
"""Between two times that the disk is waited for, at least."""
SYNC_SHARE = 20.0
"""So many times as long as that took, at least."""
DEAD_BYTES = 1 << 26
"""Products of finished steps are left in the file up to so many bytes, or as many as there are others."""

Kept = dict[str, Tensor]
"""What a step found."""


class _Record(NamedTuple):
    """One of the file, without its content."""

    kind: bytes
    key: bytes
    place: int
    length: int


class RunLog:
    """Products and results of steps, in the order in which a run asks for them.

    Args:
        path: of the file; None: nothing is kept.
        fingerprint: of what determines the products; a log is only used for the same one.

    Raises:
        CurvError: the file is no log, or one of another run.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path | None = None, fingerprint: str = "") -> None:
        self.problem: str | None = None
        """Why nothing more is written."""
        self.found = 0
        """Products and results that were there,"""
        self.damaged = 0
        """and bytes behind them that belong to none."""
        self._path, self._records, self._next = path, list[_Record](), 0
        self._dead, self._sync_at = 0, time.monotonic() + SYNC_SECONDS
        self._header = _MAGIC + hashlib.sha256(fingerprint.encode()).digest()
        self._last, self._end = self._header, len(self._header)
        if path is None:
            return
        exists = path.exists()
        if exists:
            check_regular(path, CurvError, "state")
            path = self._path = own_copy(path)
        try:
            self._file: IO[bytes] = path.open("r+b" if exists else "w+b")
            try:
                self._read(path.name)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise OutputError(
                f"{str(path)!r} cannot be written: {error.strerror}", "check --state"
            ) from None
        self.found = sum(record.kind != _BEGUN for record in self._records)

    def product(self, v_N: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """The product with ``v_N``: from the log, or computed and written there."""
        if self._path is None:
            return compute(v_N)
        key = hashlib.sha256(_bytes(v_N)).digest()
        content = self._taken(_PRODUCT, key)
        if content is not None:
            flat = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return flat.view(v_N.dtype).to(v_N.device)
        product_N = compute(v_N)
        self._append(_PRODUCT, key, _bytes(product_N))
        return product_N

    def step(
        self,
        name: str,
        generator: torch.Generator,
        compute: Callable[[], Kept],
        whole: Callable[[], bool] = lambda: True,
    ) -> Kept:
        """What a step finds: from the log, or computed and kept in place of the step's products.

        Args:
            name: of the step, with everything but the products and the draws that its result depends on.
            generator: what the step draws from; left as the step leaves it.
            compute: the step.
            whole: whether it was not cut short; a step that was begins again.
        """
        if self._path is None:
            return compute()
        key = hashlib.sha256(name.encode() + _bytes(generator.get_state())).digest()
        content = self._taken(_DONE, key)
        if content is not None:
            kept = load(content)
            generator.set_state(kept.pop("generator"))
            return kept
        if self._taken(_BEGUN, key) is None:
            self._append(_BEGUN, key, b"")
        first = self._next - 1
        kept = compute()
        if self.problem is None and whole():
            content = save(
                {**{k: t.cpu() for k, t in kept.items()}, "generator": generator.get_state()}
            )
            self._drop_products(first)
            self._append(_DONE, key, content)
            self._compact()
        return kept

    def close(self) -> None:
        """Wait until everything is on the disk."""
        if self._path is not None:
            self._sync(now=True)
            self._file.close()

    def _taken(self, kind: bytes, key: bytes) -> bytes | None:
        """The content of the next record, if it is this one; else all from it on is dropped."""
        if self._next == len(self._records):
            return None
        record = self._records[self._next]
        if (record.kind, record.key) == (kind, key):
            try:
                self._file.seek(record.place + _HEAD.size)
                content = self._file.read(record.length)
            except OSError:
                content = b""
            if len(content) == record.length:
                self._next += 1
                return content
        elif kind == _DONE and (record.kind, record.key) == (_BEGUN, key):
            return None
        del self._records[self._next :]
        self._rewrite()
        return None

    def _drop_products(self, first: int) -> None:
        """Those of the step that began with record ``first``."""
        self._dead += sum(record.length for record in self._records[first:])
        del self._records[first:]
        self._next = first

    def _append(self, kind: bytes, key: bytes, content: bytes | memoryview) -> None:
        if self.problem is not None:
            return
        place = self._end
        digest = _digest(self._last, kind, key, content)
        try:
            self._file.seek(place)
            self._file.write(_HEAD.pack(kind, len(content), key, digest))
            self._file.write(content)
            self._file.flush()
            self._sync()
        except OSError as error:
            self._give_up(error)
            return
        self._end, self._last = place + _HEAD.size + len(content), digest
        self._records.append(_Record(kind, key, place, len(content)))
        self._next = len(self._records)

    def _sync(self, now: bool = False) -> None:
        began = time.monotonic()
        if self.problem is not None or (not now and began < self._sync_at):
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
        self._next = len(self._records)

    def _compact(self) -> None:
        """Write the file anew once most of it is products of finished steps."""
        live = sum(record.length for record in self._records)
        if self._dead > max(live, DEAD_BYTES):
            self._rewrite()

    def _rewrite(self) -> None:
        """The records that count, in a file that takes the place of the present one."""
        if self._path is None or self.problem is not None:
            return
        try:
            made = Replacement(self._path)
            try:
                records, last, end = [], self._header, len(self._header)
                made.file.write(self._header)
                for record in self._records:
                    self._file.seek(record.place + _HEAD.size)
                    content = self._file.read(record.length)
                    if len(content) != record.length:
                        raise OSError("it has become shorter meanwhile")
                    last = _digest(last, record.kind, record.key, content)
                    made.file.write(_HEAD.pack(record.kind, len(content), record.key, last))
                    made.file.write(content)
                    records.append(record._replace(place=end))
                    end += _HEAD.size + len(content)
            except BaseException:
                made.discard()
                raise
            made.commit()
            self._file.close()
            self._file = self._path.open("r+b")
        except OSError as error:
            self._give_up(error)
            return
        self._records, self._last, self._end, self._dead = records, last, end, 0

    def _read(self, name: str) -> None:
        """All records that are whole; the file is cut after them."""
        header = self._file.read(len(self._header))
        if header and not header.startswith(_MAGIC[: len(header)]):
            raise CurvError(
                f"{name} is not a saved state of this command", "name another file by --state"
            )
        if len(header) < len(self._header):  # empty, or a run that died at once
            self._file.seek(0)
            self._file.write(self._header)
            self._file.flush()
        elif header != self._header:
            raise CurvError(
                f"{name} belongs to another run: command, matrix, weights, data, loss or dtype differ",
                "delete it, or name another file by --state",
            )
        size = os.fstat(self._file.fileno()).st_size
        while len(head := self._file.read(_HEAD.size)) == _HEAD.size:
            kind, length, key, digest = _HEAD.unpack(head)
            if self._end + _HEAD.size + length > size:
                break
            if _digest(self._last, kind, key, self._file.read(length)) != digest:
                break
            if kind == _DONE:
                # Of a step that is finished the file may have lost the beginning on purpose.
                begun = [i for i, r in enumerate(self._records) if r[:2] == (_BEGUN, key)]
                self._drop_products(begun[-1] if begun else len(self._records))
            self._records.append(_Record(kind, key, self._end, length))
            self._end, self._last = self._end + _HEAD.size + length, digest
        self._next, self.damaged = 0, max(0, size - self._end)
        self._file.truncate(self._end)


UNSAVED = RunLog()
"""Of a run that is kept nowhere."""


class Logged:
    """A, whose products are taken from a log where they are there.

    Args:
        op: A.
        log: of the run.
    """

    def __init__(self, op: SymmetricOperator, log: RunLog) -> None:
        self._op, self._log = op, log
        self.n, self.dtype, self.device = op.n, op.dtype, op.device
        self.ranks, self.offload = ranks_of(op), offload_of(op)

    def matvec(self, v_N: Tensor) -> Tensor:
        """A v."""
        return self._log.product(v_N, self._op.matvec)


def _digest(last: bytes, kind: bytes, key: bytes, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(last)
    digest.update(kind + key + struct.pack("<Q", len(content)))
    digest.update(content)
    return digest.digest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data
