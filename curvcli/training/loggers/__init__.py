"""Where series of figures go: one small adapter for each tracker."""

import importlib
from collections.abc import Mapping
from typing import Protocol

from curvcli.errors import UsageError, did_you_mean

NAMES = ("tensorboard", "wandb", "mlflow", "trackio", "csv", "jsonl")
_LIBRARIES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}  # fmt: skip


class Logger(Protocol):
    """Something that takes figures step by step."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step."""

    def close(self) -> None:
        """Write what is held."""


def make_logger(text: str) -> Logger:
    """``NAME`` or ``NAME:PLACE``: a directory for tensorboard, a file for csv and jsonl, a project for the others.

    Raises:
        UsageError: there is no such tracker, or its library is not installed.
    """
    name, _, place = text.partition(":")
    if name not in NAMES:
        raise UsageError(
            f"there is no tracker {name!r}.{did_you_mean(name, NAMES)}",
            f"known: {', '.join(NAMES)}",
        )
    try:
        module = importlib.import_module(f"curvcli.training.loggers.to_{name}")
    except ImportError:
        library = _LIBRARIES[name]
        raise UsageError(f"{name} is not installed", f"pip install {library}") from None
    logger: Logger = module.make(place or None)
    return logger


def tag(name: str) -> str:
    """The name of a figure as all trackers take it: ``hessian.top[0].value`` is ``hessian/top/0/value``.

    >>> tag("hessian.top[0].value")
    'hessian/top/0/value'
    """
    return name.replace("[", ".").replace("]", "").replace('"', "").replace(".", "/")
