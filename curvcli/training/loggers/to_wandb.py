"""Figures in Weights & Biases."""

from collections.abc import Mapping

import wandb

from curvcli.training.loggers import tag


class WeightsAndBiases:
    """The run that is open, or one of this program's own, in the project named.

    The step of a run that is open belongs to its training, so figures have an axis of their own.
    """

    def __init__(self, project: str | None) -> None:
        self._own = wandb.run is None
        self._run = wandb.run or wandb.init(project=project)
        self._run.define_metric("curvcli/step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        told = {tag(name): value for name, value in figures.items()}
        for name in told:
            self._run.define_metric(name, step_metric="curvcli/step")
        self._run.log({"curvcli/step": step, **told})

    def close(self) -> None:
        """End the run, if it was begun here."""
        if self._own:
            self._run.finish()


make = WeightsAndBiases
