"""The program: one Typer command for each analysis, and `schema`."""

import functools
import os
import sys
from typing import Annotated, Any

import typer

from curvcli import __version__
from curvcli.analyses.registry import NAMES, get
from curvcli.cli import options
from curvcli.cli.completion import completer
from curvcli.cli.execute import execute
from curvcli.cli.help import GroupedCommand, Program, begin
from curvcli.cli.streams import prepare, put, say_error, writing
from curvcli.errors import EXIT_BAD_INPUT, EXIT_OK, OutputError, did_you_mean

_EPILOG = (
    "Exit codes: 0 success, 1 findings under --strict, 2 bad input, 3 no answer, 70 internal error."
)


def make_app() -> typer.Typer:
    """The commands, derived from the registered analyses."""
    app = typer.Typer(
        name="curvcli",
        cls=Program,
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=_EPILOG,
    )
    app.callback()(_root)
    for name in NAMES:
        question = get(name)
        run = options.command(question, functools.partial(execute, question))
        app.command(name, cls=GroupedCommand, short_help=question.summary, epilog=_EPILOG)(run)
    app.command("schema")(schema)
    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"curvcli {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Inspect the curvature of neural networks, from a checkpoint and a batch of data."""
    if context.invoked_subcommand is None:
        begin()


def schema(
    command: Annotated[
        str,
        typer.Argument(help="Name of a command, or 'target'.", autocompletion=completer("command")),
    ],
) -> None:
    """Print the JSON Schema of an analysis' answer, or of target files."""
    import json

    from curvcli.analyses.shared.target_schema import target_schema
    from curvcli.report.data import json_schema

    if command not in (*NAMES, "target"):
        say_error(
            f"there is no command {command!r}.{did_you_mean(command, NAMES)}",
            f"commands: {', '.join(NAMES)}; target: the schema of target files",
        )
        raise typer.Exit(EXIT_BAD_INPUT)
    found = target_schema() if command == "target" else json_schema(get(command).result)
    typer.echo(json.dumps(found, indent=2))


def main() -> None:
    """Entry point of the console script."""
    prepare()
    try:
        os.getcwd()
    except OSError as problem:  # libraries below torch would end the program without a word
        say_error(f"there is no working directory: {problem.strerror}", "change to one that exists")
        sys.exit(EXIT_BAD_INPUT)
    code: Any = EXIT_OK
    try:
        with writing():
            make_app()()
    except OutputError as problem:
        say_error(problem.message)
        code = problem.exit_code
    except SystemExit as ending:
        # Of a help text whose reader has closed the pipe, Click says 1, which is for violations.
        code = EXIT_OK if isinstance(ending.__context__, BrokenPipeError) else ending.code
    try:
        put("")
    except OutputError as problem:
        say_error(problem.message)
        code = problem.exit_code
    sys.exit(code)
