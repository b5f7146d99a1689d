"""Progress below the cell of a notebook."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from curvcli.analyses.shared.journal import Stage, line

# Seconds before the first line is drawn: what is quick needs none.
_PATIENCE = 1.0


@contextmanager
def progress_line() -> Iterator[Callable[[Stage], None]]:
    """What takes the stages of a run: one line, drawn again in its place and emptied at the end; nothing elsewhere."""
    shown = _Line() if _in_notebook() else None
    try:
        yield shown or (lambda _: None)
    finally:
        if shown is not None:
            shown.clear()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


class _Line:
    def __init__(self) -> None:
        self._began = self._drawn = time.monotonic()
        self._stage, self._since = "", self._began
        self._handle: Any = None

    def __call__(self, stage: Stage) -> None:
        now = time.monotonic()
        if stage.what != self._stage:
            self._stage, self._since = stage.what, now
        if now - self._began < _PATIENCE or now - self._drawn < 0.1:
            return
        self._drawn = now
        self._draw(line(stage, now - self._since))

    def clear(self) -> None:
        if self._handle is not None:
            self._draw("")

    def _draw(self, text: str) -> None:
        from IPython.display import display

        # Text, which no front end interprets: names in it may come from files.
        told = {"text/plain": text}
        if self._handle is None:
            self._handle = display(told, raw=True, display_id=True)
        else:
            self._handle.update(told, raw=True)
