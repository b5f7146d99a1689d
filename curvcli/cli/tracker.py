"""Figures of an answer in a tracker of experiments, where ``--log`` names one."""

import sys
from contextlib import redirect_stdout
from typing import Any

from curvcli.training.afterwards import series_in


class Tracker:
    """What ``--log`` names; opened before anything is computed, so that a wrong name costs no time.

    Trackers print where they put things: that goes to stderr.

    Args:
        text: of the flag; None: nothing is written.

    Raises:
        UsageError: there is no such tracker, or its library is not installed.
    """

    def __init__(self, text: str | None) -> None:
        self._logger = None
        if text is not None:
            from curvcli.training.loggers import make_logger

            with redirect_stdout(sys.stderr):
                self._logger = make_logger(text)

    def tell(self, question: str, result: Any) -> None:
        """Write the series of an answer."""
        if self._logger is None:
            return
        with redirect_stdout(sys.stderr):
            for step, figures in series_in(question, result):
                self._logger.log(step, figures)
            self._logger.close()
