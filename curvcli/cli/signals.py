"""Ctrl-C and SIGTERM: the first asks for what is known so far, the second ends at once."""

import signal
from types import FrameType

from curvcli.cli.streams import say


class Interruption:
    """Whether the user asked to stop.

    Args:
        silent: nothing is said of it.
    """

    def __init__(self, silent: bool = False) -> None:
        self.asked, self._silent = False, silent

    def __call__(self) -> bool:
        return self.asked

    def install(self) -> None:
        """Handle SIGINT and SIGTERM from now on."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if not self._silent:
            say("\nending with what is known so far (again to stop at once)\n")
