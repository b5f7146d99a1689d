"""Figures in Trackio."""

from collections.abc import Mapping

import trackio

from curvcli.training.loggers import tag


class Trackio:
    """A run in the project named, ``curvcli`` by default."""

    def __init__(self, project: str | None) -> None:
        trackio.init(project=project or "curvcli")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        trackio.log({tag(name): value for name, value in figures.items()}, step=step)

    def close(self) -> None:
        """End the run."""
        trackio.finish()


make = Trackio
