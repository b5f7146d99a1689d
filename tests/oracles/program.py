"""Running the program as users do: in a process, in this one, and in a pseudo-terminal."""

import json
import multiprocessing
import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from curvcli.cli.main import make_app
from tests.oracles import command

ROOT = Path(__file__).parent.parent.parent
_SECONDS = 120.0
# Read when Python or torch start: a command that is given them has a process of its own.
_EARLY = ("PYTHON", "OMP_", "LC_", "LANG")
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([command.__name__])


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a command says that is run in a process, not in a terminal."""
    everything = {**os.environ, **environment}
    if "COLUMNS" not in environment:
        everything.pop("COLUMNS", None)
    if any(name.startswith(_EARLY) for name in environment):
        return subprocess.run(
            [sys.executable, "-m", "curvcli", *arguments],
            capture_output=True, text=True, cwd=cwd, env=everything, timeout=_SECONDS, check=False,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name, "out"), Path(name, "err")
        out.touch()
        err.touch()
        process = _started(arguments, cwd, everything, (os.devnull, str(out), str(err)), False)
        process.join(_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(list(arguments), _SECONDS)
        return subprocess.CompletedProcess(
            list(arguments), process.exitcode, out.read_text(), err.read_text()
        )


def _started(
    arguments: tuple[str, ...],
    cwd: Path,
    environment: Mapping[str, str],
    streams: tuple[str, str, str],
    terminal: bool,
) -> ForkServerProcess:
    process = _PROCESSES.Process(
        target=command.command,
        args=(arguments, str(cwd), dict(environment), streams, terminal),
    )
    process.start()
    return process


def invoke(*arguments: str) -> Any:
    """In this process: quick, for everything that needs no process of its own."""
    return CliRunner().invoke(make_app(), list(arguments))


def answer(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = invoke(*arguments, "--format", "json")
    return result.exit_code, json.loads(result.stdout)


def in_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run in a pseudo-terminal; everything it shows."""
    descriptor, other = pty.openpty()
    name = os.ttyname(other)
    everything = {**os.environ, "TERM": "xterm-256color", **environment}
    process = _started(arguments, ROOT, everything, (name, name, name), True)
    shown = b""
    end = time.monotonic() + _SECONDS
    while select.select([descriptor], [], [], 0.05)[0] or process.exitcode is None:
        if select.select([descriptor], [], [], 0)[0]:
            shown += os.read(descriptor, 65536)
        if time.monotonic() > end:
            process.kill()
            raise subprocess.TimeoutExpired(list(arguments), _SECONDS)
    os.close(descriptor)
    os.close(other)
    assert process.exitcode is not None
    return process.exitcode, shown.decode()
