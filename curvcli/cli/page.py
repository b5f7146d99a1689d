"""An answer as what is on its page."""

import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from curvcli.analyses.shared.question import Question
from curvcli.report.data import Block, Cell, Envelope, Facts, Section
from curvcli.report.page.html import Page

_LIBRARIES = ("torch", "numpy", "transformers")


def page_of(
    question: Question, envelope: Envelope[Any], title: str, blocks: Sequence[Block]
) -> Page:
    """The page; an answer that has no sections is one."""
    places = [i for i, block in enumerate(blocks) if isinstance(block, Section)]
    if places:
        first, last = places[0], places[-1] + 1
        return Page(
            title=title,
            headline=envelope.verdict,
            lead=blocks[:first],
            sections=[block for block in blocks[first:last] if isinstance(block, Section)],
            tail=blocks[last:],
            provenance=_provenance(envelope),
        )
    section = Section(
        question.name, envelope.verdict, blocks, envelope.findings, envelope.notes,
        command_line(), question.meaning,
    )  # fmt: skip
    return Page(title=title, sections=[section], provenance=_provenance(envelope))


def command_line() -> str:
    """What was typed."""
    return shlex.join(["curvcli", *sys.argv[1:]])


def _provenance(envelope: Envelope[Any]) -> Facts:
    """When, how and of what; all that another run needs to be the same."""
    cost, target = envelope.cost, envelope.target
    rows: list[tuple[str, Cell]] = [
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("command line", command_line()),
        ("versions", ", ".join([f"curvcli {envelope.version}", *_versions()])),
    ]
    if target is not None:
        rows += [
            ("checkpoint", target.checkpoint),
            ("its SHA-256", target.checkpoint_sha256),
            ("model", target.model),
            ("data", target.data),
            ("its SHA-256", target.data_sha256),
            ("samples", target.samples),
            ("loss", target.loss),
            ("mode", target.mode),
            ("device", target.device),
            ("dtype", target.dtype),
            ("seed", str(target.seed)),
        ]
    peak = None if cost.peak_memory is None else f"{cost.peak_memory / 2**20:,.0f} MiB"
    rows += [
        ("products", cost.matvecs),
        ("gradients", cost.gradients),
        ("time", f"{cost.seconds:.1f} s"),
        ("peak memory", peak),
    ]
    return Facts([(label, cell) for label, cell in rows if cell is not None])


def _versions() -> list[str]:
    found = [f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
