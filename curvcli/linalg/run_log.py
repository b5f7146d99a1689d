"""A long run on disk, as the log of its products: a run that is started again finds its first products there.

Everything between products is deterministic, so that a run that takes its products from the log goes the same way to
the bit and goes on where the log ends. Products are bound to their vectors: one of another vector is made anew, and
what the log has from there on is dropped. Of a finished step only its result stays. The file is that of `log_file`.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from curvcli.linalg.log_file import Record, RecordFile, flat
from curvcli.linalg.operator import SymmetricOperator, offload_of, ranks_of
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.tensor_file import bytes_of

_PRODUCT, _BEGUN, _DONE = b"P", b"B", b"D"
DEAD_BYTES = 1 << 26
"""Products of finished steps are left in the file up to so many bytes, or as many as there are others."""

Kept = dict[str, Tensor]
"""What a step found."""


class RunLog:
    """Products and results of steps, in the order in which a run asks for them.

    Args:
        path: of the file; None: nothing is kept.
        fingerprint: of what determines the products; a log is only used for the same one.
        ranks: processes that make the run together.

    Raises:
        CurvError: the file is no log, or one of another run.
        OutputError: it cannot be written.
    """

    def __init__(
        self, path: Path | None = None, fingerprint: str = "", ranks: Ranks = ALONE
    ) -> None:
        self._file = RecordFile(path, fingerprint, ranks) if path is not None else None
        self._records, self._next, self._dead = list[Record](), 0, 0
        for record in self._file.records if self._file is not None else []:
            if record.kind == _DONE:
                # Of a step that is finished the file may have lost the beginning on purpose.
                begun = [i for i, r in enumerate(self._records) if r[:2] == (_BEGUN, record.key)]
                self._drop_products(begun[-1] if begun else len(self._records))
            self._records.append(record)
        self._next = 0
        self.found = sum(record.kind != _BEGUN for record in self._records)
        """Products and results that were there,"""
        self.damaged = self._file.damaged if self._file is not None else 0
        """and bytes behind them that belong to none."""

    @property
    def problem(self) -> str | None:
        """Why nothing more is written."""
        return self._file.problem if self._file is not None else None

    def product(self, v_N: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """The product with ``v_N``: from the log, or computed and written there."""
        if self._file is None:
            return compute(v_N)
        # Of all its parts, so that the processes take the same products.
        digests = self._file.holders.collected([hashlib.sha256(bytes_of(v_N)).digest()])
        key = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
        content = self._taken(self._file, _PRODUCT, key)
        if content is not None:
            return flat(content).view(v_N.dtype).to(v_N.device)
        product_N = compute(v_N)
        self._append(self._file, _PRODUCT, key, bytes_of(product_N))
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
        if self._file is None:
            return compute()
        key = hashlib.sha256(name.encode() + bytes_of(generator.get_state())).digest()
        content = self._taken(self._file, _DONE, key)
        if content is not None:
            kept = load(content)
            generator.set_state(kept.pop("generator"))
            return kept
        if self._taken(self._file, _BEGUN, key) is None:
            self._append(self._file, _BEGUN, key, b"")
        first = self._next - 1
        kept = compute()
        if self.problem is None and whole():
            content = save(
                {**{k: t.cpu() for k, t in kept.items()}, "generator": generator.get_state()}
            )
            self._drop_products(first)
            self._append(self._file, _DONE, key, content)
            self._compact(self._file)
        return kept

    def close(self) -> None:
        """Wait until everything is on the disk."""
        if self._file is not None:
            self._file.close()

    def _taken(self, file: RecordFile, kind: bytes, key: bytes) -> bytes | None:
        """This process' part of the next record, if it is this one; else all from it on is dropped."""
        if self._next == len(self._records):
            return None
        record = self._records[self._next]
        if (record.kind, record.key) == (kind, key):
            content = file.part_of(record)
            if not file.holders.largest(int(content is None)):
                self._next += 1
                return content
        elif kind == _DONE and (record.kind, record.key) == (_BEGUN, key):
            return None
        del self._records[self._next :]
        self._rewrite(file)
        return None

    def _drop_products(self, first: int) -> None:
        """Those of the step that began with record ``first``."""
        self._dead += sum(record.length for record in self._records[first:])
        del self._records[first:]
        self._next = first

    def _append(
        self, file: RecordFile, kind: bytes, key: bytes, content: bytes | memoryview
    ) -> None:
        record = file.append(kind, key, content)
        if record is not None:
            self._records.append(record)
        self._next = len(self._records)

    def _compact(self, file: RecordFile) -> None:
        """Write the file anew once most of it is products of finished steps."""
        live = sum(record.length for record in self._records)
        if self._dead > max(live, DEAD_BYTES):
            self._rewrite(file)

    def _rewrite(self, file: RecordFile) -> None:
        """The records that count, in a file that takes the place of the present one."""
        self._records, self._dead = file.rewrite(self._records), 0


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
