"""Several processes that torchrun, or `curvcli --ranks`, has started for one run: joined, watched, left."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from curvcli.errors import LostProcessError
from curvcli.linalg.ranks import Group
from curvcli.report.data import ErrorInfo

# A process that waits for another asks whether it lives; it is named within ten seconds.
_BEAT, _SILENT = 1.0, 8.0
# Between two looks at an exchange that goes on.
_SHORTEST, _LONGEST = 2e-5, 5e-3
# How long a process waits until the first one has read why it ends.
_GRACE = 10.0
# Exchanges take as long as the slowest process computes; who is lost is told by its silence, not by this.
_PATIENCE = timedelta(days=7)


def local_rank() -> int:
    """This process' number on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size(size: int) -> int:
    """How many of so many processes are on this machine; all, where nothing else is known."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size))


@contextmanager
def _answers_alone() -> Iterator[None]:
    """Standard output is for the answer: what libraries below Python write there (gloo of torch 2.8) goes to stderr."""
    if sys.stdout is None or sys.stderr is None:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class Processes:
    """The processes of this run; each has joined when this object is made.

    Args:
        rank: of this process.
        size: how many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._lost: str | None = None
        self._told: dict[str, Any] | None = None
        self._ended = threading.Event()
        try:
            # The store of torchrun's own agent, where it has started this process, else one of the first process.
            started = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            self._store = dist.TCPStore(  # type: ignore[attr-defined]
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size,
                is_master=rank == 0 and not started, timeout=timedelta(seconds=120), multi_tenant=True,
            )  # fmt: skip
            # All are there by now; from here on, whoever goes is missed.
            self._store.set(self._key(rank), "0")
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            with _answers_alone():
                dist.init_process_group(
                    backend, store=self._store, rank=rank, world_size=size, timeout=_PATIENCE
                )
        except (RuntimeError, ValueError, KeyError, dist.DistError) as error:
            raise LostProcessError(
                f"the {size} processes did not find each other: {' '.join(str(error).split())[:160]}",
                "start them by torchrun, or by --ranks on one machine; inside another program of torchrun's, unset "
                "WORLD_SIZE to run alone",
            ) from None
        self.ranks = Group(self._wait)
        self.ranks.largest(0)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self._rank == 0

    def leave(self) -> None:
        """Wait for the others, and end the group; the first process, which they meet at, goes last."""
        self.ranks.largest(0)
        self._ended.set()
        self._thread.join()
        if self.first:
            left = [f"left/{r}" for r in range(1, self._size)]
            until = time.monotonic() + _GRACE
            while time.monotonic() < until and not self._store.check(left):
                time.sleep(0.01)
        else:
            self._store.set(f"left/{self._rank}", "1")
        dist.destroy_process_group()

    def tell(self, problem: ErrorInfo) -> None:
        """Let the first process say why this one ends; it is given time to read it."""
        if self.first or problem.code == LostProcessError.code:
            return
        told = {"rank": self._rank, "message": problem.message, "hint": problem.hint}
        try:
            self._store.set("ended", json.dumps(told))
            until = time.monotonic() + _GRACE
            while time.monotonic() < until and not self._store.check(["read"]):
                time.sleep(0.05)
        except RuntimeError:  # the first process has gone, and the store with it
            return

    def _key(self, rank: int) -> str:
        return f"alive/{rank}"

    def _watch(self) -> None:
        """Show that this process lives, and look whether the others do."""
        seen = {r: ("", time.monotonic()) for r in range(self._size) if r != self._rank}
        count = 0
        while not self._ended.wait(_BEAT):
            count += 1
            now = time.monotonic()
            try:
                self._store.set(self._key(self._rank), str(count))
                if self._told is None and self._store.check(["ended"]):
                    self._told = json.loads(self._store.get("ended"))
                for r, (last, when) in seen.items():
                    key = self._key(r)
                    beat = self._store.get(key).decode() if self._store.check([key]) else last
                    if beat != last:
                        seen[r] = beat, now
                    elif now - when > _SILENT:
                        self._lost = f"process {r} of {self._size}"
            except RuntimeError:
                self._lost = self._lost or "the process that holds the others together"

    def _wait(self, work: Any) -> None:
        """Until an exchange has ended.

        Raises:
            LostProcessError: another process does not answer, or has ended with a problem.
        """
        pause = _SHORTEST
        while not work.is_completed():
            time.sleep(pause)
            pause = min(1.2 * pause, _LONGEST)
            if not work.is_completed():
                self._look()
        try:
            work.wait()
        except RuntimeError:  # a connection was closed: by whom, its silence tells
            until = time.monotonic() + _SILENT + 2 * _BEAT
            while time.monotonic() < until:
                self._look()
                time.sleep(0.05)
            raise LostProcessError("another process has ended", _ADVICE) from None

    def _look(self) -> None:
        if self._told is not None:
            told = self._told
            if self.first:
                self._store.set("read", "1")
            raise LostProcessError(
                f"process {told['rank']} of {self._size} has ended: {told['message']}", told["hint"]
            )
        if self._lost is not None:
            raise LostProcessError(
                f"{self._lost} was lost: it has not answered for {_SILENT:.0f} s", _ADVICE
            )


_ADVICE = "look at what it printed, and whether it was killed for its memory"
