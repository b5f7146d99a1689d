"""One command, from flags to exit code."""

import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import typer

from curvcli.analyses.registry import NAMES
from curvcli.analyses.shared.answer import Answer, envelope, error_info, internal
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.shared.targets import Named, resolve_targets
from curvcli.analyses.shared.trouble import explained
from curvcli.cli.browser import show, shown_in_browser
from curvcli.cli.lines import Lines, append_summary
from curvcli.cli.options import split
from curvcli.cli.processes import Team, start
from curvcli.cli.progress import ProgressLine
from curvcli.cli.signals import Interruption
from curvcli.cli.streams import fitted, say, say_error
from curvcli.cli.tracker import Tracker
from curvcli.cli.write import SUFFIXES, check_output, emit
from curvcli.errors import (
    EXIT_INTERNAL,
    EXIT_NO_ANSWER,
    EXIT_OK,
    EXIT_VIOLATION,
    CurvError,
    OutputError,
    UsageError,
    printable,
)
from curvcli.loading.spec import is_target_file
from curvcli.report.data import Envelope, ErrorInfo


def execute(question: Question, given: dict[str, Any]) -> NoReturn:
    """Ask the question and write its answer; always ends in ``typer.Exit``."""
    settings, options, output = split_or_exit(question, given)
    team = Team()
    started_here(given.get("ranks"), team, output)
    if team.helps and question.needs != "objective":
        raise typer.Exit(EXIT_OK)
    if output["open"] and not team.helps:
        output = shown_in_browser(question, output)
    interruption = Interruption(silent=team.helps)
    interruption.install()
    if not output["verbose"]:
        warnings.simplefilter("ignore")
    subject = Subject()
    journal = Journal(interrupted=interruption)
    answer: Answer[Any] | None = None
    error: ErrorInfo | None = None
    wanted = output["format"] == "ndjson" and not team.helps
    lines = Lines(output["output"]) if wanted else None
    try:
        check_output(question, output["output"], output["format"], static=output["static"])
        tracker = Tracker(None if team.helps else output["log"])
        if question.needs == "objective":
            team.join()
        quiet = output["quiet"] or output["watch"] or team.helps
        with ProgressLine(not quiet) as progress:
            journal = Journal(
                progress=progress, interrupted=interruption, item=lines or (lambda _: None),
                agree=team.agree,
            )  # fmt: skip
            if output["watch"]:
                subject, journal, answer = watched(
                    question, given, settings, options, output, interruption, lines
                )
            else:
                subject = inspected(question, given, settings, options)
                team.share(subject)
                answer = ask(question, subject, journal)
                team.leave()
        tracker.tell(question.name, answer.result)
    except (Exception, SystemExit, KeyboardInterrupt) as problem:  # SystemExit: by the user's code
        error = failed(problem, team, output["verbose"])
    if lines is not None:
        try:
            lines.close(complete=error is None)
        except OutputError as problem:
            error = error_info(problem)
            report_error(problem, output["verbose"])
    if team.helps:
        team.end(error.exit_code if error else EXIT_OK)
    whole = envelope(question.name, subject, journal, answer, error)
    team.end(finish(question, whole, output, answer))


def started_here(count: int | None, team: Team, output: dict[str, Any]) -> None:
    """Start the processes of ``--ranks``, of which this one is none; does not return then."""
    problem = None
    if count is not None and count < 1:
        problem = UsageError(f"--ranks {count} is no number of processes", "--ranks 2")
    elif output["watch"] and (team.several or (count or 1) > 1):
        problem = UsageError("--watch follows a run with one process", "leave out --ranks")
    if problem is not None:
        report_error(problem, verbose=False)
        raise typer.Exit(problem.exit_code)
    if count is not None and count > 1 and not team.several:
        raise typer.Exit(start(count))


def failed(problem: BaseException, team: Team, verbose: bool) -> ErrorInfo:
    """Why there is no answer, which the first process says."""
    if isinstance(problem, KeyboardInterrupt):
        say("" if team.helps else "interrupted\n")
        return ErrorInfo("interrupted", "interrupted", None, EXIT_NO_ANSWER)
    known = explained(problem)
    error = error_info(known) if known else internal(problem)
    team.fail(error)
    if team.helps:
        return error
    if known is not None:
        report_error(known, verbose)
    else:
        say(f"internal error: {printable(error.message)}\n  {error.hint}\n")
        say(traceback.format_exc() if verbose else "")
    return error


def ask(question: Question, subject: Subject, journal: Journal) -> Answer[Any]:
    """The answer, with the options of the first target that can be used."""
    first = next((m for m in subject.members if m.problem is None), subject)
    chosen = first.tables[question.name]
    return question.ask(subject, chosen, journal, f"curvcli {question.name}")


def watched(
    question: Question,
    given: dict[str, Any],
    settings: dict[str, Any],
    options: dict[str, Any],
    output: dict[str, Any],
    interruption: Interruption,
    lines: Lines | None,
) -> tuple[Subject, Journal, Answer[Any]]:
    """The answer of a series that goes on; what was computed is kept from one look to the next."""
    from curvcli.cli.watch import follow

    def now(journal: Journal, state: str) -> tuple[Subject, Answer[Any]]:
        subject = inspected(question, given, settings, {"state": state, **options})
        return subject, ask(question, subject, journal)

    terminal = sys.stdout is not None and sys.stdout.isatty() and not output["quiet"]
    targets = given.get("target") or []
    return follow(now, question, targets, interruption, lines, terminal)


def inspected(
    question: Question, given: dict[str, Any], settings: dict[str, Any], options: dict[str, Any]
) -> Subject:
    """What the command line names, with the options of its target files overridden by flags.

    Raises:
        UsageError: too many targets or too few, or a setting that is wrong.
    """

    def make(named: Named) -> Subject:
        if named.problem is not None:
            return Subject(name=named.name, problem=named.problem)
        chosen = chosen_options(question, named.tables, options)
        tables = {**named.tables, question.name: chosen}
        return Subject(named.spec, tables=tables, name=named.name, file=named.file)

    argument, project = given.get("target"), given.get("project")
    if question.targets == "one":
        spec, tables = resolve_target(argument, settings, NAMES, project)
        return make(Named(argument or "target", spec, tables, argument))
    if options.get("skip_others"):
        argument = [
            a for a in argument or [] if Path(a).suffix != ".toml" or is_target_file(Path(a))
        ]
        if not argument:
            return Subject(tables={question.name: options})
    named = resolve_targets(argument or [], settings, NAMES, question.targets, project)
    return Subject(members=[make(n) for n in named], tables={question.name: options})


def chosen_options(
    question: Question, tables: dict[str, dict[str, Any]], flags: dict[str, Any]
) -> dict[str, Any]:
    """The options of a question: the target file's, overridden by flags."""
    name = question.name
    chosen = question.validate(tables.get(name, {}), f"[{name}] in the target file")
    for option, value in question.validate(flags, f"curvcli {name}").items():
        # A table of names (thresholds) is added to, not replaced.
        known = chosen.get(option)
        chosen[option] = {**known, **value} if isinstance(known, dict) else value
    return chosen


def split_or_exit(
    question: Question, given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """`options.split`, with a usage error printed."""
    try:
        return split(question, given)
    except CurvError as problem:
        report_error(problem, verbose=False)
        raise typer.Exit(problem.exit_code) from None


def finish(
    question: Question, whole: Envelope[Any], output: dict[str, Any], answer: Answer[Any] | None
) -> int:
    """Write the answer and the notes; the exit code."""
    kind = output["format"] or SUFFIXES.get(Path(output["output"] or "").suffix.lower(), "table")
    if (whole.error is None and kind != "ndjson") or kind == "json":
        try:
            emit(question, whole, kind, output["output"], static=output["static"])
            if output["open"]:
                show(output["output"])
            append_summary(question, whole)
        except OutputError as problem:
            report_error(problem, output["verbose"])
            return problem.exit_code
    if whole.error is not None or answer is None:
        return whole.error.exit_code if whole.error else EXIT_INTERNAL
    if not output["quiet"] and kind != "json":
        for note in whole.notes:
            say(fitted(f"note: {printable(note)}"))
    if kind == "ndjson" and not output["quiet"]:
        for finding in whole.findings:
            say(f"{finding.severity}: {printable(finding.message)}\n")
    if answer.exit_code is not None:
        return answer.exit_code
    if not answer.complete:
        return EXIT_NO_ANSWER
    violated = any(f.severity != "note" for f in whole.findings)
    return EXIT_VIOLATION if output["strict"] and violated else EXIT_OK


def report_error(problem: CurvError, verbose: bool) -> None:
    """What was expected, what was found, what to do; on stderr."""
    if verbose:
        say(traceback.format_exc())
    say_error(problem.message, problem.hint)
