"""Faults on demand: the k-th operation of torch, write or read of a command fails, and what may come of it.

Run as a program it makes the whole sweep and prints its counts: ``python -m tests.oracles.faults [COMMAND ...]``.
"""

import builtins
import errno
import io
import json
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.oracles.program import invoke

KINDS = ("allocation", "write", "read")
STATE = ("--state", "kept.state")
# Each command with one of its figures, by its place in the result. A figure that lacks memory for the exact way may be
# an estimate: `SLACK` holds what its own standard error allows here.
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {
    "hessian": (("t.toml", *STATE), ("top", 0, "value")),
    "density": (("t.toml", *STATE), ("moments", 0, "value")),
    "trace": (("t.toml", *STATE), ("trace", "value")),
    "track": (("t.toml", "m.safetensors", "n.safetensors", *STATE), ("points", -1, "loss")),
    "saddle": (("t.toml",), ("lambda_max", "value")),
    "taylor": (("t.toml",), ("lambda_max",)),
    "step": (("t.toml", "--save", "stepped.safetensors"), ("loss",)),
    "lr": (("t.toml", "--steps", "4", "--max-trials", "4"), ("loss",)),
    "backprop": (("t.toml",), ("passed",)),
    "gradients": (("t.toml",), ("loss",)),
    "jacobian": (("t.toml",), ("frobenius", "mean")),
    "compare": (("t.toml", "m.safetensors", "n.safetensors"), ("distance",)),
    "check": (("t.toml", "--rule", "hessian.top[0].value < 1e9", "--baseline", "base.json",
               "--update-baseline"), ("healthy",)),
    "info": (("m.pt",), ("parameters",)),
    "init": (("m.safetensors", "--to", "made.toml", "--force"), ("text",)),
    "doctor": ((), ("devices",)),
}  # fmt: skip
SLACK = 1e-3
# Each of the first 300, and a tenth further each time through the thousands that an analysis takes.
NUMBERS = [*range(1, 301), *(int(300 * 1.1**i) for i in range(1, 45))]


class Allocation(TorchDispatchMode):
    """The k-th operation of torch fails as its allocator does."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.left = k

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError(
                "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."
            )
        return function(*args, **(kwargs or {}))


class Countdown:
    """The k-th call fails."""

    def __init__(self, k: int, error: int) -> None:
        self.left, self.error = k, error

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.error, os.strerror(self.error))


class Disk(io.FileIO):
    """A file whose reads and writes are counted."""

    reading: Callable[[], None] = staticmethod(lambda: None)
    writing: Callable[[], None] = staticmethod(lambda: None)

    def readinto(self, buffer: Any, /) -> Any:
        self.reading()
        return super().readinto(buffer)

    def readall(self) -> Any:
        self.reading()
        return super().readall()

    def write(self, content: Any, /) -> Any:
        self.writing()
        return super().write(content)


@contextmanager
def disk(kind: str, k: int) -> Iterator[Countdown]:
    """The k-th write (with what puts it in its place) or read of a file of the working folder fails."""
    count = Countdown(k, errno.ENOSPC if kind == "write" else errno.EIO)
    whole_open, folder = io.open, os.path.realpath(os.curdir)

    class Counted(Disk):
        reading = staticmethod(count if kind == "read" else lambda: None)
        writing = staticmethod(count if kind == "write" else lambda: None)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        ours = isinstance(file, int) or os.path.realpath(os.fsdecode(file)).startswith(folder)
        if not ours or not more.get("closefd", True):
            return whole_open(file, mode, buffering, *rest, **more)
        raw = Counted(file, mode.replace("b", "").replace("t", ""))
        both = {"+": io.BufferedRandom, "r": io.BufferedReader}
        buffered = next((kind for sign, kind in both.items() if sign in mode), io.BufferedWriter)
        binary = buffered(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, *rest, **more)

    def first(function: Any) -> Any:
        def counted(*arguments: Any, **more: Any) -> Any:
            count()
            return function(*arguments, **more)

        return counted

    with ExitStack() as stack:
        for module in (io, builtins):
            stack.enter_context(mock.patch.object(module, "open", opened))
        if kind == "write":
            for name in ("fsync", "replace"):
                stack.enter_context(mock.patch.object(os, name, first(getattr(os, name))))
        yield count


def faulty(kind: str, k: int) -> Any:
    """A context in which the k-th operation of this kind fails; ``left`` says whether it came to that."""
    return Allocation(k) if kind == "allocation" else disk(kind, k)


def project(folder: Path) -> None:
    """A small network in every form that the commands read."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    save_file(net.state_dict(), folder / "m.safetensors")
    torch.save(net.state_dict(), folder / "m.pt")
    save_file({k: v + 0.1 for k, v in net.state_dict().items()}, folder / "n.safetensors")
    x = np.random.default_rng(0).normal(size=(6, 2)).astype("f4")
    np.savez(folder / "d.npz", x=x, y=np.arange(6) % 2)
    (folder / "t.toml").write_text(
        'checkpoint = "m.safetensors"\nmodel = "auto"\ndata = "d.npz"\nloss = "cross_entropy"\n'
    )


def figure(command: str, path: Path) -> Any:
    """The figure of an answer that is whole."""
    value = json.loads(path.read_text())["result"]
    for key in COMMANDS[command][1]:
        value = value[key]
    return value


class Trials:
    """A command in the working folder with faults, held against its answer without."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.counts: Counter[str] = Counter()
        self.arguments = [command, *COMMANDS[command][0], "--quiet", "-o", "out.json"]
        self._clean()
        done = invoke(*self.arguments)
        assert done.exit_code == 0, (done.stderr, done.exception)
        self.truth = figure(command, Path("out.json"))
        self.names = {path.name for path in Path().iterdir()}

    def _clean(self) -> None:
        shutil.rmtree("cache", ignore_errors=True)
        for path in Path().iterdir():
            if path.name not in ("m.safetensors", "n.safetensors", "m.pt", "d.npz", "t.toml"):
                path.unlink()

    def trial(self, kind: str, k: int) -> bool:
        """One run with a fault; False where the command has fewer operations of this kind."""
        if k % 2:
            self._clean()  # what is kept from before is there in every second trial
        context = faulty(kind, k)
        with context as made:
            done = invoke(*self.arguments)
        here = f"{self.command}: {kind} {k}: exit code {done.exit_code}: {done.stderr}"
        assert done.exit_code in (0, 2, 3), (here, done.exception)
        if done.exit_code:
            assert "error: " in done.stderr or self._says_what_failed(), here
        else:
            value = figure(self.command, Path("out.json"))
            assert self._right(value) or (value is None and self._says_what_failed()), here
        self._nothing_is_damaged(here)
        self.counts[f"{kind} {done.exit_code}"] += 1
        return bool(made.left <= 0)

    def _right(self, value: Any) -> bool:
        if isinstance(value, float):
            return math.isclose(value, self.truth, rel_tol=SLACK)
        return bool(value == self.truth)

    def _says_what_failed(self) -> bool:
        """Of several targets those that failed are findings of the answer."""
        rules = {f["rule"] for f in json.loads(Path("out.json").read_text())["findings"]}
        return bool(rules & {"check.error", "track.bad-checkpoint"})

    def _nothing_is_damaged(self, here: str) -> None:
        """Answers are whole, nothing is left over, and a state leads to the right answer."""
        names = {path.name for path in Path().iterdir()}
        assert names <= self.names | {"cache"}, (here, names)
        for path in Path().iterdir():
            if path.suffix == ".json":
                json.loads(path.read_text())
        if "kept.state" in names:
            done = invoke(*self.arguments)
            assert done.exit_code == 0, (here, done.stderr)
            assert self._right(figure(self.command, Path("out.json"))), here


def sweep(command: str, kinds: tuple[str, ...], numbers: Iterable[int]) -> Counter[str]:
    """Trials of one command; counts by kind and exit code."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        before = Path.cwd()
        os.chdir(folder)
        stack.callback(os.chdir, before)
        stack.enter_context(mock.patch.dict(os.environ, {"XDG_CACHE_HOME": folder + "/cache"}))
        project(Path())
        trials = Trials(command)
        for kind in kinds:
            for k in numbers:
                if not trials.trial(kind, k):
                    break
        return trials.counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or COMMANDS:
        for kind in KINDS:
            try:
                print(name, dict(sweep(name, (kind,), NUMBERS)), flush=True)
            except AssertionError as error:
                print(name, kind, "FAULT", error, flush=True)
