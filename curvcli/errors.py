"""The exceptions of curvcli and the exit codes they carry.

::

    CurvError                 2   base: a sentence for the user, and what mends it
    ├── UsageError            2   options that contradict each other or do not exist
    ├── CheckpointError       2   the file of weights cannot be used
    ├── ModelError            2   the network cannot be built or does not fit the weights
    ├── DataError             2   the batches cannot be read or do not fit the network
    ├── LossError             2   the loss cannot be evaluated
    │   └── NonFiniteError    2   NaN or Inf in weights, data, loss or products
    ├── UserCodeError         2   a model, loss or loader of the user's raised an exception
    ├── OutputError           2   the answer cannot be written where it was asked for
    └── NoAnswerError         3   the run ended without an answer
        └── MemoryLimitError  3   it does not fit, even in the smallest pieces

Anything else that escapes is a defect of curvcli (exit code 70).
"""

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_VIOLATION = 1
EXIT_BAD_INPUT = 2
EXIT_NO_ANSWER = 3
EXIT_INTERNAL = 70


class CurvError(Exception):
    """A problem the user can mend: what was expected, what was found, what to do.

    Args:
        message: what was expected and what was found.
        hint: the command or flag that mends it.
    """

    exit_code = EXIT_BAD_INPUT
    code = "error"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CurvError):
    """Options that contradict each other or do not exist."""

    code = "usage"


class CheckpointError(CurvError):
    """A file of weights that cannot be used."""

    code = "checkpoint"


class ModelError(CurvError):
    """A network that cannot be built or does not fit the weights."""

    code = "model"


class DataError(CurvError):
    """Batches that cannot be read or do not fit the network."""

    code = "data"


class LossError(CurvError):
    """A loss that cannot be evaluated."""

    code = "loss"


class NonFiniteError(LossError):
    """NaN or Inf in weights, data, loss or products."""

    code = "non-finite"


class UserCodeError(CurvError):
    """An exception that code of the user's raised."""

    code = "user-code"


class OutputError(CurvError):
    """An answer that cannot be written where it was asked for."""

    code = "output"


class NoAnswerError(CurvError):
    """A run that ended without an answer."""

    exit_code = EXIT_NO_ANSWER
    code = "no-answer"


class MemoryLimitError(NoAnswerError):
    """A problem that does not fit in memory, even in the smallest pieces."""

    code = "memory"


class LostProcessError(NoAnswerError):
    """One of several processes that work together has ended or does not answer."""

    code = "lost-process"


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The ``count`` names in ``choices`` that look most like ``name``."""
    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.5)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``' Did you mean …?'``, or an empty string when nothing comes near."""
    close = nearest(name, choices, 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def some(names: Iterable[str], count: int = 5) -> str:
    """The first ``count`` names, quoted, and how many more there are."""
    listed = list(names)
    shown = ", ".join(repr(n) for n in listed[:count])
    rest = len(listed) - count
    return f"{shown} and {rest} more" if rest > 0 else shown


def printable(raw: str) -> str:
    """Text from a file without what could drive a terminal (control characters) or a CI system (its commands)."""
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in raw).replace(
        "##[", "##\\x5b"
    )
    return f"\\x3a{text[1:]}" if text.startswith("::") else text
