"""Answers that are not one document: lines as a series goes on, and the summary of a CI job."""

import os
import sys
from pathlib import Path
from typing import IO, Any

import msgspec

from curvcli.analyses.shared.question import Question
from curvcli.report.data import Envelope


class Lines:
    """Writes each item as one line of JSON as soon as it is known.

    Args:
        path: a file, written under a temporary name and renamed at the end; None: stdout.
    """

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._file: IO[str] | None = None

    def __call__(self, item: Any) -> None:
        if self._path is not None and self._file is None:
            self._file = self._temporary.open("w", encoding="utf-8")
        file = self._file or sys.stdout
        file.write(msgspec.json.encode(item).decode() + "\n")
        file.flush()

    @property
    def _temporary(self) -> Path:
        assert self._path is not None
        return self._path.with_name(self._path.name + ".tmp")

    def close(self, complete: bool) -> None:
        """Rename the file; what was written of a run that failed is removed."""
        if self._file is None:
            return
        self._file.close()
        if complete and self._path is not None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink()


def append_summary(question: Question, envelope: Envelope[Any]) -> None:
    """Append the answer as Markdown to the job summary of GitHub Actions, where there is one."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if not summary or question.cases is None or envelope.result is None:
        return
    from curvcli.report.text import markdown

    text = markdown.render(
        f"curvcli {envelope.command}", question.view(envelope.result), envelope.findings
    )
    try:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        sys.stderr.write(f"note: the job summary cannot be written: {error.strerror}\n")
