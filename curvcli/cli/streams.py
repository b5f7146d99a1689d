"""Standard output, which carries the answer, and standard error, which carries messages: neither fails by surprise."""

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from curvcli.errors import OutputError, printable

_SPELLED = "curvcli-spelled"
_WORDS = {"✓": "OK", "✗": "X"}
"""Where an encoding has no such mark."""


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """A mark of a verdict in letters, any other character as an escape."""
    if isinstance(error, UnicodeEncodeError) and (word := _WORDS.get(error.object[error.start])):
        return word, error.start + 1
    return codecs.backslashreplace_errors(error)


codecs.register_error(_SPELLED, _spelled)


def prepare() -> None:
    """Take what is closed for /dev/null, and write what an encoding lacks as an escape."""
    # The descriptor of a closed stream would go to the next file that is opened, and receive messages.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors=_SPELLED)  # type: ignore[union-attr]


def say(text: str) -> None:
    """Write to stderr; a message that cannot be shown must not change how the program ends."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


def coloured(stream: TextIO | None) -> bool:
    """Whether it is a terminal that shows colours, and nobody asked for none."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream is not None and stream.isatty() and not plain


def say_error(message: str, hint: str | None = None) -> None:
    """What was expected and found, and under it what to do; ``error:`` is bold red on a terminal."""
    label = "\x1b[1;31merror:\x1b[0m" if coloured(sys.stderr) else "error:"
    say(f"{label} {printable(message)}\n")
    if hint:
        say(f"  {printable(hint)}\n")


def put(text: str) -> None:
    """Write to stdout and flush it; a reader that has closed its end has what it wanted.

    Raises:
        OutputError: stdout takes no more.
    """
    with writing():
        if sys.stdout is not None:
            sys.stdout.write(text)
            sys.stdout.flush()
        elif text:
            raise OSError("it is closed")


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Around what writes to stdout: see `put`."""
    try:
        yield
    except BrokenPipeError:
        _silence()
    except (OSError, ValueError) as error:
        _silence()
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"stdout cannot be written: {reason}", "name a file by -o") from None


def _silence() -> None:
    """Python would try again, and complain, while it closes stdout."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
