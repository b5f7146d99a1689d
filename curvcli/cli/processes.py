"""Several processes for one command: started by ``--ranks N`` on this machine, or by torchrun."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import typer

from curvcli.analyses.shared.subject import Subject
from curvcli.files import write_nothing
from curvcli.report.data import ErrorInfo

if TYPE_CHECKING:
    from curvcli.loading.processes import Processes

# After one process has ended with an error the others may still say what they know.
_GRACE = 12.0


class Team:
    """This process and those that work with it, if it was started as one of several."""

    def __init__(self) -> None:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._rank = int(os.environ.get("RANK", "0")) if several else 0
        self._processes: Processes | None = None
        self.several = several
        if several:
            # Read when torch is imported: an error is that of the process that has it, not its neighbours' lost lines.
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        if self.helps:
            write_nothing()

    @property
    def helps(self) -> bool:
        """Whether this process only helps the first one, which says and writes everything."""
        return self._rank > 0

    def join(self) -> None:
        """Find the others.

        Raises:
            LostProcessError: they are not all there.
        """
        if self.several:
            from curvcli.loading.processes import Processes

            self._processes = Processes(self._rank, int(os.environ["WORLD_SIZE"]))

    @property
    def agree(self) -> Callable[[int], int] | None:
        """The largest of a number over all processes; None: there is one only."""
        return None if self._processes is None else self._processes.ranks.largest

    def share(self, subject: Subject) -> None:
        """Share the data of a subject out."""
        if self._processes is not None:
            subject.share_among(self._processes.ranks)

    def leave(self) -> None:
        """Wait for the others; nothing is exchanged afterwards."""
        if self._processes is not None:
            self._processes.leave()
            self._processes = None

    def fail(self, error: ErrorInfo) -> None:
        """Let the first process say why this one ends."""
        if self._processes is not None:
            self._processes.tell(error)

    def end(self, code: int) -> NoReturn:
        """Exit, without waiting for exchanges that will not end."""
        if self._processes is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        raise typer.Exit(code)


def start(count: int) -> int:
    """Run this very command in ``count`` processes on this machine; the exit code of the first.

    Each has its share of the cores. Signals are passed on to all.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // count)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", "curvcli", *sys.argv[1:]]
    processes = [
        subprocess.Popen(
            command,
            env={
                "OMP_NUM_THREADS": str(threads),
                **os.environ,
                **shared,
                "RANK": str(r),
                "LOCAL_RANK": str(r),
            },
            stdout=None if r == 0 else subprocess.DEVNULL,
        )
        for r in range(count)
    ]

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    # Ctrl-C reaches all of them from the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, pass_on)
    _await(processes)
    code = processes[0].wait()
    return code if code >= 0 else 128 - code


def _await(processes: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended; where one has failed, the others have a while to end by themselves."""
    failed: float | None = None
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if failed is None and any(process.poll() for process in processes):
            failed = now
        if failed is not None and now - failed > _GRACE:
            for process in processes:
                process.kill()
        time.sleep(0.02)
