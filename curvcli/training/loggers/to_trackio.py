"""Figures in Trackio."""

from collections.abc import Mapping

import trackio
from trackio import context_vars

from curvcli.training.loggers import tag


class Trackio:
    """The run that is open, or one of this program's own, in the project named, ``curvcli`` by default.

    The step of a run that is open belongs to its training, so that of the figures is a figure there.
    """

    def __init__(self, project: str | None) -> None:
        current = context_vars.current_run.get()
        self._own = current is None
        self._run = current or trackio.init(project=project or "curvcli")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        told = {tag(name): value for name, value in figures.items()}
        if self._own:
            self._run.log(told, step=step)
        else:
            self._run.log({"curvcli/step": step, **told})

    def close(self) -> None:
        """End the run, if it was begun here."""
        if self._own:
            trackio.finish()


make = Trackio
