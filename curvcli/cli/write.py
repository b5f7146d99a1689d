"""The answer written: to a terminal, a pipe or a file, in the format asked for."""

import importlib
import importlib.util
import os
import sys
from io import StringIO
from pathlib import Path
from typing import Any

from curvcli.analyses.shared.question import Question
from curvcli.cli.options import ARRAYS, CASE_FORMATS, PICTURES, SHEETS
from curvcli.cli.streams import put, writing
from curvcli.errors import OutputError, did_you_mean
from curvcli.files import write_whole
from curvcli.report.data import Envelope
from curvcli.report.head import headed

SUFFIXES = {
    ".json": "json",
    ".md": "markdown",
    ".html": "html",
    ".htm": "html",
    **{f".{kind}": kind for kind in (*PICTURES, *SHEETS, *ARRAYS)},
}
# Texts, which a table is.
_TEXTS = ("", ".txt", ".log", ".out")
# What a kind is written by, and the extra that has it.
_LIBRARIES = {
    **dict.fromkeys(PICTURES, ("matplotlib", "plot")),
    "html": ("plotly", "report"),
    "parquet": ("pyarrow", "tabular"),
}
# Width of text that goes to a pipe or a file, where COLUMNS does not say otherwise.
_PIPE_WIDTH = 100


def emit(
    question: Question,
    envelope: "Envelope[Any]",
    kind: str,
    path: str | None,
    *,
    static: bool = False,
) -> None:
    """Render and write to stdout or to ``path`` (under a temporary name, then renamed).

    Args:
        question: that was asked.
        envelope: the answer.
        kind: the format.
        path: of the file; None: stdout.
        static: a page has no scripts.
    """
    if kind == "table" and path is None and sys.stdout is not None and sys.stdout.isatty():
        with writing():
            to_terminal(question, envelope)
        return
    if kind in PICTURES:
        from curvcli.report import figure

        content = figure.render(_title(question, envelope), question.view(envelope.result), kind)
        _write(path or "", content)
        return
    if kind in SHEETS:
        from curvcli.report import sheet

        _write(path or "", sheet.render(question.view(envelope.result), kind))
        return
    if kind in ARRAYS and question.arrays is not None:
        from curvcli.report.npz import as_npz

        _write(path or "", as_npz(question.arrays(envelope.result)))
        return
    text = render(question, envelope, kind, static=static)
    if path is None:
        put(text)
        return
    _write(path, text.encode(errors="backslashreplace"))


def _write(path: str, content: bytes) -> None:
    try:
        write_whole(Path(path), content)
    except OSError as error:
        raise OutputError(
            f"{path!r} cannot be written: {error.strerror}", "name another file by -o"
        ) from None


def render(
    question: Question, envelope: "Envelope[Any]", kind: str, *, static: bool = False
) -> str:
    """The answer as text."""
    if kind == "json":
        from curvcli.report import json

        return json.render(envelope)
    if question.cases is not None and kind in CASE_FORMATS:
        renderer = importlib.import_module(f"curvcli.report.ci.{kind}")
        return str(renderer.render(envelope, question.cases(envelope.result)))
    blocks = headed(envelope.target, question.view(envelope.result))
    title = _title(question, envelope)
    if kind == "markdown":
        from curvcli.report.text import markdown

        return markdown.render(title, blocks, envelope.findings, envelope.verdict)
    if kind == "html":
        from curvcli.cli.page import page_of
        from curvcli.report.page import html

        return html.render(page_of(question, envelope, title, blocks), static=static)
    from rich.console import Console

    from curvcli.report.text import terminal

    buffer = StringIO()
    terminal.render(
        Console(file=buffer, width=_width()), blocks, envelope.findings, envelope.verdict
    )
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))


def _title(question: Question, envelope: "Envelope[Any]") -> str:
    target, about = envelope.target, None
    if target is not None:
        about = Path(target.checkpoint or target.model or "").name
    elif question.about is not None:
        about = question.about(envelope.result)
    return f"curvcli {envelope.command}" + (f": {about}" if about else "")


def to_terminal(question: Question, envelope: "Envelope[Any]") -> None:
    """The table on a terminal, in colour unless NO_COLOR is set."""
    from rich.console import Console

    from curvcli.report.text import terminal

    blocks = headed(envelope.target, question.view(envelope.result))
    terminal.render(Console(), blocks, envelope.findings, envelope.verdict)
    sys.stdout.flush()


def _width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) > 0 else _PIPE_WIDTH


def check_output(
    question: Question, path: str | None, kind: str | None, *, static: bool = False
) -> None:
    """Before anything is computed: can the answer be written there, in the form that the suffix says?

    Args:
        question: whose answer it is.
        path: of the file; None: stdout.
        kind: the format that was asked for; None: the suffix says it.
        static: a page has no scripts, and needs no library for them.

    Raises:
        OutputError: no.
    """
    suffix = Path(path or "").suffix.lower()
    if path is not None and kind is None:
        _check_suffix(path)
    kind_ = kind or SUFFIXES.get(suffix, "")
    if not (static and kind_ == "html"):
        _check_library(kind_, f"-o {path!r}" if kind is None else f"--format {kind}")
    if path is None:
        return
    if kind is None and kind_ in ARRAYS and question.arrays is None:
        raise OutputError(
            f"-o {path!r}: the answer of {question.name} has no grid",
            "name a file that ends in .json",
        )
    place = Path(path)
    folder = Path(os.path.realpath(path)).parent
    if place.exists() and not place.is_file() and not place.is_dir():
        return  # a device or a pipe, which is written into
    if place.is_dir():
        raise OutputError(f"-o {path!r} is a directory", "name a file in it")
    if not folder.is_dir():
        raise OutputError(f"-o {path!r}: there is no directory {str(folder)!r}", "make it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"-o {path!r}: the directory is not writable", "name another file")


def _check_suffix(path: str) -> None:
    """A suffix is one that can be written, and what it takes is installed."""
    suffix = Path(path).suffix.lower()
    known = (*SUFFIXES, *_TEXTS[1:])
    if suffix not in (*known, "") and not Path(path).is_dir():
        raise OutputError(
            f"-o {path!r}: no answer is written as {suffix}.{did_you_mean(suffix, known)}",
            f"{', '.join(known)} are known; --format says it for any other name",
        )


def _check_library(kind: str, asked: str) -> None:
    library, extra = _LIBRARIES.get(kind, ("", ""))
    if library and importlib.util.find_spec(library) is None:
        what = f"{kind} files are written by {library}, which is not installed"
        without = ", or pass --static for a page without scripts" if kind == "html" else ""
        raise OutputError(f"{asked}: {what}", f"pip install 'curvcli[{extra}]'{without}")
