"""Files written as a whole, under a name of their own until they are, and files that are read: regular ones only."""

import atexit
import contextlib
import difflib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from curvcli.errors import CurvError

_KINDS: list[tuple[Callable[[int], bool], str]] = [
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
]
# Share of a name that a misspelt one has in common with it.
_ALIKE = 0.75


def check_regular(path: Path, error: type[CurvError], what: str = "file") -> None:
    """A file that is read to its end is a regular one: the end of a pipe or a device may never come.

    Args:
        path: the file; a link is followed.
        error: the kind of error to raise.
        what: it is called in messages.

    Raises:
        CurvError: it is missing, out of reach, or something else.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.name == "-":
            raise error(
                f"standard input ('-') cannot be the {what}: files are read by place, and more than once",
                "write it into a file, and name that one",
            ) from None
        raise error(f"there is no {what} {str(path)!r}{_alike(path)}", "check the path") from None
    except (OSError, ValueError) as problem:  # ValueError: a path with a zero byte
        reason = getattr(problem, "strerror", None) or problem
        raise error(
            f"the {what} {str(path)!r} cannot be read: {reason}", "check the path"
        ) from None
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise error(
            f"the {what} {str(path)!r} is {kind}, not a regular file",
            "write its content into a file, and name that one",
        )


def _alike(path: Path) -> str:
    """The file beside a missing one that is called almost the same, as a question; empty where there is none."""
    try:
        beside = [p.name for p in path.parent.iterdir() if p.suffix == path.suffix]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, beside, n=1, cutoff=_ALIKE)
    return f". Did you mean {str(path.with_name(close[0]))!r}?" if close else ""


_writing = True


def write_nothing() -> None:
    """From now on this process only helps another one, which writes the same files."""
    global _writing  # noqa: PLW0603  (a property of the process)
    _writing = False


def own_copy(path: Path) -> Path:
    """The file that a process which only helps may change: a copy that nobody else sees; else the file itself."""
    if _writing:
        return path
    folder = tempfile.TemporaryDirectory(prefix="curvcli-")
    atexit.register(folder.cleanup)
    copy = Path(folder.name) / path.name
    if path.is_file():
        shutil.copyfile(path, copy)
    return copy


class Replacement:
    """A file in the making, which takes the place of another one once it is whole.

    A link is followed, and the mode of what is there is kept. A device or a pipe is no file that could be replaced: it
    is written into.

    Args:
        path: where the file will be.

    Raises:
        OSError: it cannot be written there.
    """

    def __init__(self, path: Path) -> None:
        path = path if _writing else Path(os.devnull)
        before = _status(path)
        self._temporary: Path | None = None
        if before is not None and not stat.S_ISREG(before.st_mode):
            self.file = path.open("wb")
            return
        self._place = Path(os.path.realpath(path))
        name = f".{self._place.name[:200]}.{secrets.token_hex(4)}.tmp"
        self._temporary = self._place.with_name(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self.file = os.fdopen(os.open(self._temporary, flags, 0o666), "wb")
        if before is not None:
            with contextlib.suppress(OSError):  # another user's file becomes ours
                os.chown(self._temporary, before.st_uid, before.st_gid)
            self._temporary.chmod(stat.S_IMODE(before.st_mode))

    def commit(self) -> None:
        """Put it in its place; what could not be written to the disk is removed.

        Raises:
            OSError: it could not be written.
        """
        try:
            self.file.flush()
            if self._temporary is not None:
                os.fsync(self.file.fileno())
            self.file.close()
            if self._temporary is not None:
                self._temporary.replace(self._place)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, it is there as a whole or as it was before.

    Raises:
        OSError: it cannot be written.
    """
    made = Replacement(path)
    try:
        made.file.write(content)
    except BaseException:
        made.discard()
        raise
    made.commit()


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Alone among the processes that lock this folder; where the system knows no locks, not alone.

    Raises:
        OSError: the folder cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
