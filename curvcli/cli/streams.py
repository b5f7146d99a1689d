"""Standard output, which carries the answer, and standard error, which carries messages: neither fails by surprise."""

import codecs
import contextlib
import os
import sys
import textwrap
from collections.abc import Iterator
from typing import TextIO

from curvcli.errors import OutputError, printable

_SPELLED = "curvcli-spelled"
# Columns: the fewest that are written for, and those of a terminal that does not say how many it has.
_NARROW, _USUAL = 20, 80
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


def fitted(text: str, indent: str = "") -> str:
    """Lines as wide as the terminal that stderr is, cut between words; anywhere else one line."""
    if sys.stderr is None or not sys.stderr.isatty():
        return f"{indent}{text}\n"
    with contextlib.suppress(OSError, ValueError):
        width = os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL
        lines = textwrap.wrap(
            text, max(width, _NARROW), initial_indent=indent, subsequent_indent=indent,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        return "".join(f"{line}\n" for line in lines)
    return f"{indent}{text}\n"


def coloured(stream: TextIO | None) -> bool:
    """Whether it is a terminal that shows colours, and nobody asked for none."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream is not None and stream.isatty() and not plain


def say_error(message: str, hint: str | None = None) -> None:
    """What was expected and found, and under it what to do; ``error:`` is bold red on a terminal."""
    told = fitted(f"error: {printable(message)}")
    if coloured(sys.stderr):
        told = told.replace("error:", "\x1b[1;31merror:\x1b[0m", 1)
    say(told)
    if hint:
        say(fitted(printable(hint), "  "))


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
