"""Answers that are not one document: lines as a series goes on, and the summary of a CI job."""

import os
from pathlib import Path
from typing import Any

import msgspec

from curvcli.analyses.shared.question import Question
from curvcli.cli.streams import put, say
from curvcli.errors import OutputError
from curvcli.files import Replacement
from curvcli.report.data import Envelope


class Lines:
    """Writes each item as one line of JSON as soon as it is known.

    Args:
        path: a file, which is in its place at the end; None: stdout.
    """

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._made: Replacement | None = None

    def __call__(self, item: Any) -> None:
        line = msgspec.json.encode(item) + b"\n"
        if self._path is None:
            put(line.decode())
            return
        try:
            self._made = self._made or Replacement(self._path)
            self._made.file.write(line)
            self._made.file.flush()
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{str(self._path)!r} cannot be written: {error.strerror}", "name another file by -o"
        )

    def close(self, complete: bool) -> None:
        """Put the file in its place; what was written of a run that failed is removed.

        Raises:
            OutputError: it cannot be written.
        """
        if self._made is None:
            return
        try:
            self._made.commit() if complete else self._made.discard()
        except OSError as error:
            raise self._failed(error) from None


def append_summary(question: Question, envelope: Envelope[Any]) -> None:
    """Append the answer as Markdown to the job summary of GitHub Actions, where there is one."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if not summary or question.cases is None or envelope.result is None:
        return
    from curvcli.report.text import markdown

    text = markdown.render(
        f"curvcli {envelope.command}",
        question.view(envelope.result),
        envelope.findings,
        envelope.verdict,
    )
    try:
        with Path(summary).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")
    except OSError as error:
        say(f"note: the job summary cannot be written: {error.strerror}\n")
