"""One command of the program in a process that was forked from one in which torch and curvcli are imported already.

Importing them takes longer than most commands do. What is imported is what users' processes import in the end; what
depends on the moment of importing is tested in processes of its own.
"""

import atexit
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

import torch  # noqa: F401  (imported for the processes that are forked)

from curvcli.analyses.registry import NAMES
from curvcli.cli.main import main

for _name in NAMES:
    for _part in ("run", "view"):
        importlib.import_module(f"curvcli.analyses.{_name}.{_part}")


def command(
    arguments: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    streams: tuple[str, str, str],
    terminal: bool,
) -> None:
    """Do in this process what ``python -m curvcli`` does in its own; ends it.

    Args:
        arguments: of the command line.
        folder: the working directory.
        environment: all of it.
        streams: files that stand for stdin, stdout and stderr.
        terminal: whether they are a terminal, which then is this process' own.
    """
    if terminal:
        os.setsid()
    for descriptor, (name, mode) in enumerate(
        zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)
    ):
        os.dup2(os.open(name, os.O_RDWR if terminal else mode), descriptor)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if terminal else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.append(folder)
    sys.argv = ["curvcli", *arguments]
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them
