"""Figures in MLflow."""

from collections.abc import Mapping

import mlflow

from curvcli.training.loggers import tag


class MLflow:
    """The run that is active, or one of this program's own, in the experiment named."""

    def __init__(self, experiment: str | None) -> None:
        self._own = mlflow.active_run() is None
        if self._own:
            if experiment is not None:
                mlflow.set_experiment(experiment)
            mlflow.start_run()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        mlflow.log_metrics({tag(name): value for name, value in figures.items()}, step=step)

    def close(self) -> None:
        """End the run, if it was begun here."""
        if self._own:
            mlflow.end_run()


make = MLflow
