"""Files that are still being written: waited for, then refused, never half read."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from curvcli.errors import CheckpointError

T = TypeVar("T")

# A file that was written to within so many seconds may be written to still.
YOUNG = 2.0
# Seconds between two looks, and of waiting in all.
PAUSE = 0.25
PATIENCE = 5.0

Signature = tuple[tuple[str, int, int, int], ...]


def signature(path: Path) -> Signature:
    """(name, size, time of the last change, inode) of a file, or of all files in a directory."""
    found = []
    for file in _files(path):
        try:
            status = file.stat()
        except OSError:
            continue  # gone between the listing and now: the signature differs from one that has it
        found.append((file.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)


def read_settled(path: Path, read: Callable[[], T], patience: float = PATIENCE) -> T:
    """What ``read`` makes of a file that does not change while it is read.

    A file that changes, or is damaged and was written to just now, is read again until it stands still or the
    patience is at an end.

    Args:
        path: file or directory.
        read: reads it, from the beginning.
        patience: seconds to wait in all.

    Raises:
        CheckpointError: it is still being written, or what ``read`` raises on a file that stands still.
    """
    end = time.monotonic() + patience
    while True:
        before = signature(path)
        problem: CheckpointError | None = None
        found: list[T] = []
        try:
            found.append(read())
        except CheckpointError as error:
            problem = error
        if _young(before) and time.monotonic() < end:
            time.sleep(PAUSE)
        changing = signature(path) != before
        if not changing and found:
            return found[0]
        if problem is not None and not changing and (not _young(before) or time.monotonic() >= end):
            raise problem
        if time.monotonic() >= end:
            size = sum(entry[1] for entry in signature(path))
            raise CheckpointError(
                f"{path.name} is still being written: it changed while it was read, {size} bytes by now",
                "wait until it is complete; write checkpoints under another name and rename them",
            ) from None
        time.sleep(PAUSE)


def _young(seen: Signature) -> bool:
    return any(abs(time.time() - changed / 1e9) < YOUNG for _, _, changed, _ in seen)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(f for f in path.iterdir() if f.is_file())
    elif path.exists():
        yield path
        if path.suffix == ".json":  # an index of shards
            for pattern in ("*.safetensors", "*.bin"):
                yield from sorted(path.parent.glob(pattern))
