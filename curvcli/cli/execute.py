"""One command, from flags to exit code."""

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import typer

from curvcli import __version__
from curvcli.analyses.registry import NAMES
from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, resolve_target
from curvcli.analyses.shared.targets import Named, resolve_targets
from curvcli.cli.lines import Lines, append_summary
from curvcli.cli.options import CASE_FORMATS, PICTURES, split
from curvcli.cli.progress import ProgressLine
from curvcli.cli.signals import Interruption
from curvcli.errors import (
    EXIT_INTERNAL,
    EXIT_NO_ANSWER,
    EXIT_OK,
    EXIT_VIOLATION,
    CurvError,
    OutputError,
)
from curvcli.report.data import Envelope, ErrorInfo
from curvcli.report.numbers import printable

_SUFFIXES = {
    ".json": "json",
    ".md": "markdown",
    ".html": "html",
    ".htm": "html",
    ".png": "png",
    ".svg": "svg",
}
# Width of text that goes to a pipe or a file, where COLUMNS does not say otherwise.
_PIPE_WIDTH = 100
_ISSUE = "this is a defect of curvcli: please report it with the output of the same command with --verbose"


def execute(name: str, analysis: Analysis, given: dict[str, Any]) -> NoReturn:
    """Run the analysis and write its answer; always ends in ``typer.Exit``."""
    settings, options, output = split_or_exit(name, analysis, given)
    interruption = Interruption()
    interruption.install()
    if not output["verbose"]:
        warnings.simplefilter("ignore")
    context = Context(interrupted=interruption)
    result, error = None, None
    lines = Lines(output["output"]) if output["format"] == "ndjson" else None
    try:
        check_output(output["output"])
        with ProgressLine(not output["quiet"]) as progress:

            def make(named: Named) -> Context:
                chosen = chosen_options(name, analysis, named.tables, options)
                tables = {**named.tables, name: chosen}
                return Context(
                    named.spec,
                    progress=progress,
                    interrupted=interruption,
                    tables=tables,
                    name=named.name,
                )

            if analysis.targets == "one":
                argument = given.get("target")
                spec, tables = resolve_target(argument, settings, tuple(NAMES))
                context = make(Named(argument or "target", spec, tables, argument))
                chosen = context.tables[name]
            else:
                named = resolve_targets(
                    given.get("target") or [], settings, tuple(NAMES), analysis.targets
                )
                context = Context(
                    progress=progress,
                    interrupted=interruption,
                    members=[make(n) for n in named],
                    item=lines or (lambda _: None),
                )
                chosen = context.members[0].tables[name]
            result = analysis.run(context, **chosen)
    except CurvError as problem:
        error = problem_info(problem)
        report_error(problem, output["verbose"])
    except KeyboardInterrupt:
        error = ErrorInfo("interrupted", "interrupted", None, EXIT_NO_ANSWER)
        sys.stderr.write("interrupted\n")
    except MemoryError:
        error = ErrorInfo("memory", "out of memory", "set --memory", EXIT_NO_ANSWER)
        sys.stderr.write(
            "error: out of memory\n  set --memory to a limit that the machine can hold\n"
        )
    except Exception as problem:
        error = ErrorInfo("internal", f"{type(problem).__name__}: {problem}", _ISSUE, EXIT_INTERNAL)
        sys.stderr.write(f"internal error: {type(problem).__name__}: {problem}\n  {_ISSUE}\n")
        if output["verbose"]:
            traceback.print_exc()
    envelope: Envelope[Any] = Envelope(
        command=name,
        version=__version__,
        target=context.target_info(),
        result=result,
        findings=context.findings,
        notes=context.notes,
        cost=context.cost_info(),
        error=error,
    )
    if lines is not None:
        lines.close(complete=error is None)
    code = finish(analysis, envelope, output, context)
    raise typer.Exit(code)


def chosen_options(
    name: str, analysis: Analysis, tables: dict[str, dict[str, Any]], flags: dict[str, Any]
) -> dict[str, Any]:
    """The options of an analysis: the target file's, overridden by flags."""
    chosen = analysis.validate(tables.get(name, {}), f"[{name}] in the target file")
    for option, value in analysis.validate(flags, f"curvcli {name}").items():
        # A table of names (thresholds) is added to, not replaced.
        known = chosen.get(option)
        chosen[option] = {**known, **value} if isinstance(known, dict) else value
    return chosen


def split_or_exit(
    name: str, analysis: Analysis, given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """`options.split`, with a usage error printed."""
    try:
        return split(analysis, given)
    except CurvError as problem:
        report_error(problem, verbose=False)
        raise typer.Exit(problem.exit_code) from None


def finish(
    analysis: Analysis, envelope: "Envelope[Any]", output: dict[str, Any], context: Context
) -> int:
    """Write the answer and the notes; the exit code."""
    kind = output["format"] or _SUFFIXES.get(Path(output["output"] or "").suffix, "table")
    if (envelope.error is None and kind != "ndjson") or kind == "json":
        try:
            emit(analysis, envelope, kind, output["output"])
            append_summary(analysis, envelope)
        except OutputError as problem:
            report_error(problem, output["verbose"])
            return problem.exit_code
    if envelope.error is not None:
        return envelope.error.exit_code
    if not output["quiet"] and kind != "json":
        for note in envelope.notes:
            sys.stderr.write(f"note: {printable(note)}\n")
    if kind == "ndjson" and not output["quiet"]:
        for finding in envelope.findings:
            sys.stderr.write(f"{finding.severity}: {printable(finding.message)}\n")
    if context.exit_code is not None:
        return context.exit_code
    if context.incomplete:
        return EXIT_NO_ANSWER
    violated = any(f.severity != "note" for f in envelope.findings)
    return EXIT_VIOLATION if output["strict"] and violated else EXIT_OK


def emit(analysis: Analysis, envelope: "Envelope[Any]", kind: str, path: str | None) -> None:
    """Render and write to stdout or to ``path`` (under a temporary name, then renamed)."""
    if kind == "table" and path is None and sys.stdout.isatty():
        to_terminal(analysis, envelope)
        return
    if kind in PICTURES:
        from curvcli.report import figure

        content = figure.render(_title(envelope), analysis.view(envelope.result), kind)
        _write(path or "", content)
        return
    text = render(analysis, envelope, kind)
    if path is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    _write(path, text.encode())


def _write(path: str, content: bytes) -> None:
    temporary = Path(path).with_name(Path(path).name + ".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path!r} cannot be written: {error.strerror}", "name another file by -o"
        ) from None


def render(analysis: Analysis, envelope: "Envelope[Any]", kind: str) -> str:
    """The answer as text."""
    if kind == "json":
        from curvcli.report import json

        return json.render(envelope)
    if analysis.cases is not None and kind in CASE_FORMATS:
        import importlib

        renderer = importlib.import_module(f"curvcli.report.ci.{kind}")
        return str(renderer.render(envelope, analysis.cases(envelope.result)))
    blocks = analysis.view(envelope.result)
    title = _title(envelope)
    if kind == "markdown":
        from curvcli.report.text import markdown

        return markdown.render(title, blocks, envelope.findings)
    if kind == "html":
        from curvcli.report.page import html

        footer = f"curvcli {envelope.version} · {envelope.cost.matvecs} products · {envelope.cost.seconds:.1f} s"
        return html.render(title, blocks, envelope.findings, footer)
    from io import StringIO

    from rich.console import Console

    from curvcli.report.text import terminal

    buffer = StringIO()
    terminal.render(Console(file=buffer, width=_width()), blocks, envelope.findings)
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))


def _title(envelope: "Envelope[Any]") -> str:
    subject = envelope.target.checkpoint or envelope.target.model if envelope.target else None
    return f"curvcli {envelope.command}" + (f": {Path(subject).name}" if subject else "")


def to_terminal(analysis: Analysis, envelope: "Envelope[Any]") -> None:
    """The table on a terminal, in colour unless NO_COLOR is set."""
    from rich.console import Console

    from curvcli.report.text import terminal

    terminal.render(Console(), analysis.view(envelope.result), envelope.findings)
    sys.stdout.flush()


def _width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) > 0 else _PIPE_WIDTH


def check_output(path: str | None) -> None:
    """Before anything is computed: can the answer be written there?

    Raises:
        OutputError: no.
    """
    if path is None:
        return
    folder = Path(path).resolve().parent
    if Path(path).is_dir():
        raise OutputError(f"-o {path!r} is a directory", "name a file in it")
    if not folder.is_dir():
        raise OutputError(f"-o {path!r}: there is no directory {str(folder)!r}", "make it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"-o {path!r}: the directory is not writable", "name another file")


def problem_info(problem: CurvError) -> ErrorInfo:
    """The error as it stands in the envelope."""
    return ErrorInfo(problem.code, problem.message, problem.hint, problem.exit_code)


def report_error(problem: CurvError, verbose: bool) -> None:
    """What was expected, what was found, what to do; on stderr."""
    if verbose:
        traceback.print_exc()
    sys.stderr.write(f"error: {printable(problem.message)}\n")
    if problem.hint:
        sys.stderr.write(f"  {printable(problem.hint)}\n")
    sys.stderr.flush()
