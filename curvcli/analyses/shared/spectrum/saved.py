"""`--state` of questions that are long chains of products: the run as a log that a later run goes on from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import torch

from curvcli.analyses.shared.journal import Journal
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.run_log import Kept, RunLog
from curvcli.report.data import Finding

S = TypeVar("S", bound=msgspec.Struct)


@contextmanager
def run_log(
    path: str | None, fingerprint: str, journal: Journal, ranks: Ranks = ALONE
) -> Iterator[RunLog]:
    """The log of a run in the file ``path``; without one, a log that keeps nothing.

    Args:
        path: what --state names.
        fingerprint: of what determines the products.
        journal: is told what was there, and what could not be written.
        ranks: processes that make the run together.

    Raises:
        CurvError: the file is something else, or cannot be written.
    """
    log = RunLog(Path(path) if path else None, fingerprint, ranks)
    name = Path(path).name if path else ""
    if log.found:
        journal.note(f"went on from {name}, which has {log.found} products and results of the run")
    if log.damaged:
        journal.note(
            f"the last {log.damaged} bytes of {name} were damaged: what they held is made anew"
        )
    try:
        yield log
    finally:
        log.close()
        if log.problem is not None:
            journal.note(f"{name} could not be written further: {log.problem}")


class _Said(msgspec.Struct):
    """What a step said on the way."""

    notes: list[str]
    findings: list[Finding]
    complete: bool


def step(
    log: RunLog,
    journal: Journal,
    name: str,
    compute: Callable[[], Kept],
    generator: torch.Generator | None = None,
) -> Kept:
    """`RunLog.step`, with what the step says to the journal; cut short by the journal it is not kept."""

    def heard() -> Kept:
        notes, findings = len(journal.notes), len(journal.findings)
        whole, journal.complete = journal.complete, True
        kept = compute()
        said = _Said(journal.notes[notes:], journal.findings[findings:], journal.complete)
        del journal.notes[notes:], journal.findings[findings:]
        journal.complete = whole
        return {**kept, "said": packed(said)}

    kept = log.step(
        name, generator or torch.Generator(), heard, whole=lambda: journal.stop() is None
    )
    said = unpacked(kept.pop("said"), _Said)
    journal.notes.extend(said.notes)
    journal.findings.extend(said.findings)
    journal.complete &= said.complete
    return kept


def packed(value: msgspec.Struct) -> torch.Tensor:
    """A struct as bytes, with all its digits."""
    return torch.frombuffer(bytearray(msgspec.msgpack.encode(value)), dtype=torch.uint8)


def unpacked(bytes_: torch.Tensor, kind: type[S]) -> S:
    """The struct that was `packed`."""
    return msgspec.msgpack.decode(bytes_.numpy().tobytes(), type=kind)
