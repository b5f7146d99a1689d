"""Running the program as users do: in a process, in this one, and in a pseudo-terminal."""

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from curvcli.cli.main import make_app

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    env.pop("COLUMNS", None)
    env.update(environment)
    return subprocess.run(
        [sys.executable, "-m", "curvcli", *arguments],
        capture_output=True, text=True, cwd=cwd, env=env, timeout=120, check=False,
    )  # fmt: skip


def invoke(*arguments: str) -> Any:
    """In this process: quick, for everything that needs no process of its own."""
    return CliRunner().invoke(make_app(), list(arguments))


def answer(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = invoke(*arguments, "--format", "json")
    return result.exit_code, json.loads(result.stdout)


def in_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run in a pseudo-terminal; everything it shows."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm-256color", **environment})
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "curvcli", *arguments])
    shown = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], 60)
        try:
            chunk = os.read(descriptor, 65536) if ready else b""
        except OSError:
            chunk = b""
        if not chunk:
            break
        shown += chunk
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown.decode()
