"""Progress on stderr: only on a terminal, and gone when the answer comes."""

import sys
import time
from types import TracebackType

from curvcli.analyses.shared.journal import Stage
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


def line(stage: Stage, elapsed: float) -> str:
    """``products 23 of about 41, 5 of 13 converged, about 12 s left``."""
    parts = [stage.what]
    if stage.expected:
        parts[0] += f" {stage.done} of about {stage.expected}"
    elif stage.done:
        parts[0] += f" {stage.done}"
    if stage.detail:
        parts.append(stage.detail)
    if stage.expected and stage.done:
        left = elapsed / stage.done * max(0, stage.expected - stage.done)
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
