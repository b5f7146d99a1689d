"""What went wrong, as an error for the user: whatever is not a defect of curvcli."""

import os
import sys
import sysconfig
import traceback
from pathlib import Path

from curvcli.errors import CurvError, MemoryLimitError, UserCodeError

_OWN = str(Path(__file__).parents[2]) + os.sep
_INSTALLED = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def explained(problem: BaseException) -> CurvError | None:
    """The error that the user sees; None for a defect of curvcli.

    An exception that passed through code which is neither curvcli's nor installed is the user's: it is named with file
    and line. A failed allocation, and what the system says of a file, are nobody's defect.
    """
    if isinstance(problem, CurvError):
        place = _place(problem.__cause__ or problem.__context__)
        if place is not None and place not in (problem.hint or ""):
            problem.hint = (
                f"{problem.hint}; raised in {place}" if problem.hint else f"raised in {place}"
            )
        return problem
    if _out_of_memory(problem):
        return MemoryLimitError(
            "out of memory", "set --memory to a limit that the machine can hold"
        )
    if (place := _place(problem)) is not None:
        text = " ".join(str(problem).split())[:300]
        return UserCodeError(
            f"{place}: {type(problem).__name__}: {text}", "--verbose shows the traceback"
        )
    if isinstance(problem, OSError):
        where = f"{problem.filename!r:.200}: " if problem.filename is not None else ""
        return CurvError(
            f"{where}{problem.strerror or problem}", "check the path, its permissions and the disk"
        )
    return None


def _place(problem: BaseException | None) -> str | None:
    """``train.py, line 3, in loss``: the user's own frame that an exception came from."""
    if problem is None:
        return None
    frames = traceback.extract_tb(problem.__traceback__)
    inside = next((i for i, f in enumerate(frames) if f.filename.startswith(_OWN)), len(frames))
    for frame in reversed(frames[inside:]):
        if _is_users(frame.filename):
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
        if frame.filename.startswith(_OWN) and not frame.name.startswith("__torch_"):
            return None  # what curvcli did when it was called back
    return None


def _is_users(file: str) -> bool:
    return not file.startswith((_OWN, "<", *_INSTALLED)) and Path(file).suffix == ".py"


def _out_of_memory(problem: BaseException) -> bool:
    if isinstance(problem, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from curvcli.machine.memory import out_of_memory

    return out_of_memory(problem)
