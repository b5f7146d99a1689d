"""Counting operations, and where the host would wait for the device."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_NOT_THE_PROGRAM = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")


class Watch:
    """Operations, and where the host would wait for the device, by operation and line of the program."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.waiting: Counter[tuple[str, str]] = Counter()
        """Numbers and tensors that are read from the device."""
        self.uploading: Counter[tuple[str, str]] = Counter()
        """Tensors that are written to the device; from memory that is not pinned the host waits as well."""

    @property
    def waits(self) -> int:
        """How often the host reads from the device."""
        return sum(self.waiting.values())

    @property
    def uploads(self) -> int:
        """How often the host writes to the device."""
        return sum(self.uploading.values())

    def lines(self) -> list[tuple[str, int]]:
        """Lines of the program and how often each waited, most first."""
        found: Counter[str] = Counter()
        for (_, line), count in self.waiting.items():
            found[line] += count
        return found.most_common()


active: list[Watch] = []


@contextmanager
def watching() -> Iterator[Watch]:
    """Count what happens inside, in all threads."""
    watch = Watch()
    active.append(watch)
    try:
        yield watch
    finally:
        active.remove(watch)


def _line() -> str:
    """The innermost line outside of torch and of this device; in a backward pass that may be none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_NOT_THE_PROGRAM):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return threading.current_thread().name


def note(kind: str, what: str) -> None:
    for watch in active:
        getattr(watch, kind)[what, _line()] += 1
