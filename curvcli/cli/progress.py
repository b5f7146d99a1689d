"""Progress on stderr: only on a terminal, and gone when the answer comes."""

import sys
import time
from types import TracebackType

from curvcli.analyses.shared.journal import Stage, line
from curvcli.errors import printable


class ProgressLine:
    """One live line: what is being done, how much of it, and the time left.

    Args:
        enabled: False draws nothing.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled and sys.stderr is not None and sys.stderr.isatty()
        self._stage = ""
        self._began = 0.0
        self._drawn = 0.0

    def __enter__(self) -> "ProgressLine":
        if self._enabled:
            from rich.console import Console

            console = Console(stderr=True)
            self._live = console.status("", spinner="dots")
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._enabled:
            self._live.stop()

    def __call__(self, stage: Stage) -> None:
        """Show how far the run has come."""
        if not self._enabled:
            return
        now = time.monotonic()
        if stage.what != self._stage:
            self._stage, self._began = stage.what, now
        elif now - self._drawn < 0.1:
            return
        self._drawn = now
        from rich.text import Text

        # Names from files are shown, not interpreted.
        self._live.update(Text(printable(line(stage, now - self._began))))
