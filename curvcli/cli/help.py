"""Help texts: examples first, then options in groups; ``-h`` shows those that are used most, ``--help`` all."""

import itertools
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from curvcli.analyses.registry import GROUPS
from curvcli.cli.streams import coloured, say_error
from curvcli.cli.usage import BEGIN, SHARED, USAGE
from curvcli.errors import EXIT_BAD_INPUT

_BOLD, _FLAG = "1", "36"
# Of click, or of the copy of it that typer carries.
_WRONG_USE: Any = typer.BadParameter.__mro__[1]
# What other programs call it.
_MEANT = {
    "--json": "--format json",
    "--csv": "-o FILE.csv",
    "--html": "-o FILE.html",
    "--gpu": "--device cuda",
    "--cuda": "--device cuda",
    "--cpu": "--device cpu",
    "--double": "--dtype float64",
    "--float64": "--dtype float64",
    "--fp64": "--dtype float64",
    "-k": "--top",
}
_KINDS = {"integer": "a whole number", "number": "a number"}


class GroupedCommand(TyperCommand):
    """A command whose ``-h`` is short. Rich's panels are not used: they take twice as long to appear."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """``-h`` anywhere shows the short help."""
        if "-h" in args:
            formatter = ctx.make_formatter()
            self._write(ctx, formatter, short=True)
            typer.echo(formatter.getvalue().rstrip("\n"))
            ctx.exit()
        given = [*args]
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as problem:
            say_error(_told(problem, given), f"'{ctx.command_path} -h' shows the options")
            raise typer.Exit(problem.exit_code) from None
        except _WRONG_USE as problem:
            say_error(*_misused(problem, ctx))
            raise typer.Exit(EXIT_BAD_INPUT) from None

    def get_help_option(self, ctx: Any) -> Any:
        """The usual one, with what both of its names do."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = "-h: the options that are used most; --help: all of them."
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The whole help."""
        self._write(ctx, formatter, short=False)

    def _write(self, ctx: Any, formatter: Any, short: bool) -> None:
        self.format_usage(ctx, formatter)
        summary, *rest = (self.help or "").split("\n", 1)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(_styled(summary, _BOLD))
        usage = USAGE.get(self.name or "")
        if usage is not None:
            with formatter.section(_styled("Examples", _BOLD)):
                _examples(formatter, usage.examples)
        if rest and not short:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(rest[0].strip())
        shown = {*SHARED, "target", *(usage.options if usage else ())} if short else None
        for heading, records in self._groups(ctx, shown).items():
            with formatter.section(_styled(heading, _BOLD)):
                formatter.write_dl([(_styled(flag, _FLAG), text) for flag, text in records])
        if short:
            formatter.write_paragraph()
            formatter.write_text(f"All options: {ctx.command_path} --help")
        else:
            self.format_epilog(ctx, formatter)

    def _groups(self, ctx: Any, shown: set[str] | None) -> dict[str, list[tuple[str, str]]]:
        """Flags and their texts under headings; only those of the names ``shown``."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None or (shown is not None and parameter.name not in shown):
                continue
            heading = getattr(parameter, "rich_help_panel", None) or (
                "Arguments" if parameter.param_type_name == "argument" else "Output options"
            )
            groups.setdefault(heading, []).append(record)
        return groups


class Program(TyperGroup):
    """The program: its commands in groups."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """What it is, how to begin, the commands, the options."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        with formatter.section(_styled("To begin with", _BOLD)):
            _examples(formatter, BEGIN)
        self.format_commands(ctx, formatter)
        records = [p.get_help_record(ctx) for p in self.get_params(ctx)]
        with formatter.section(_styled("Options", _BOLD)):
            formatter.write_dl([(_styled(r[0], _FLAG), r[1]) for r in records if r is not None])
        self.format_epilog(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """One section for each group."""
        widest = max(len(name) for names in GROUPS.values() for name in names)
        for heading, names in GROUPS.items():
            with formatter.section(_styled(heading, _BOLD)):
                formatter.write_dl(
                    [
                        (_styled(name.ljust(widest), _FLAG), self.commands[name].short_help or "")
                        for name in names
                    ]
                )


def begin() -> None:
    """What ``curvcli`` alone shows: three commands to begin with."""
    lines = ["Inspect the curvature of a neural network. To begin with:", ""]
    for line, purpose in BEGIN:
        lines += [f"  {_styled(line, _FLAG)}", f"      {purpose}"]
    typer.echo("\n".join([*lines, "", "All commands: curvcli --help"]))


def _told(problem: Any, arguments: list[str]) -> str:
    """What a flag takes and what it was given, in a user's words."""
    message = problem.message.removeprefix("Value error, ").rstrip(".")
    flag = next((n for n in getattr(problem.param, "opts", []) if n.startswith("--")), None)
    wanted = next((told for word, told in _KINDS.items() if f"valid {word}" in message), None)
    if flag is None or wanted is None:
        return f"{flag}: {message}" if flag else message
    # The last one counts.
    for word, following in reversed([*itertools.pairwise([*arguments, ""])]):
        name, equals, value = word.partition("=")
        if name == flag:
            return f"{flag} takes {wanted}, not {(value if equals else following)!r}"
    return f"{flag} takes {wanted}"


def _misused(problem: Any, ctx: Any) -> tuple[str, str]:
    """What is wrong with a flag that does not exist or an argument too many, and what may be meant."""
    help_ = f"'{ctx.command_path} -h' shows the options that are used most, --help all"
    if not hasattr(problem, "possibilities"):
        message = problem.message.rstrip(".")
        many = "unexpected extra argument" in message
        return message[:1].lower() + message[1:], (
            "there is one target; data are named by --data, a network by --model" if many else help_
        )
    name = problem.option_name
    all_commands = getattr(getattr(ctx.parent, "command", None), "commands", {})
    having = [n for n, c in all_commands.items() if any(name in p.opts for p in c.params)]
    if having:
        return f"{ctx.info_name} has no option {name}, only {', '.join(having)}", help_
    near = _MEANT.get(name) or " or ".join(problem.possibilities or [])
    return f"there is no option {name}" + (f". Did you mean {near}?" if near else ""), help_


def _examples(formatter: Any, examples: tuple[tuple[str, str], ...]) -> None:
    """Lines to copy, each with what it is for; never broken."""
    indent = " " * formatter.current_indent
    for line, purpose in examples:
        formatter.write(f"{indent}{_styled(line, _FLAG)}\n{indent}    {purpose}\n")


def _styled(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if coloured(sys.stdout) else text
