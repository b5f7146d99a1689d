"""Writes man pages from the help texts: python docs/manual.py [FOLDER]."""

import sys
from pathlib import Path
from typing import Any

import typer

from curvcli import __version__
from curvcli.cli.main import make_app

HEAD = '.TH "{title}" "1" "" "curvcli {version}" "curvcli"\n'


def plain(text: str | None) -> str:
    """A text as roff takes it."""
    lines = (text or "").replace("\\", "\\e").replace("-", "\\-").splitlines()
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in lines)


def page(name: str, command: Any, others: list[str]) -> str:
    """The man page of one command."""
    summary, _, rest = (command.help or "").partition("\n")
    context = typer.Context(command, info_name=name.replace("-", " ", 1))
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [
        HEAD.format(title=name.upper(), version=__version__).rstrip(),
        ".SH NAME", f"{plain(name)} \\- {plain(summary)}",
        ".SH SYNOPSIS", plain(usage),
        ".SH DESCRIPTION", plain(rest.strip() or summary),
        ".SH OPTIONS",
    ]  # fmt: skip
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            lines += [".TP", f"\\fB{plain(record[0])}\\fR", plain(record[1])]
    if command.epilog:
        lines += [".SH EXIT STATUS", plain(command.epilog)]
    if others:
        lines += [".SH SEE ALSO", ", ".join(f"\\fB{plain(o)}\\fR(1)" for o in others)]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """File name -> man page, of the program and of each command."""
    program = typer.main.get_command(make_app())
    commands = getattr(program, "commands", {})
    names = [f"curvcli-{name}" for name in commands]
    found = {"curvcli.1": page("curvcli", program, names)}
    for name, command in commands.items():
        found[f"curvcli-{name}.1"] = page(f"curvcli-{name}", command, ["curvcli"])
    return found


def main() -> None:
    """Write all pages into a folder."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "man")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
