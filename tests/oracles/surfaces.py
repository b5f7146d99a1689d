"""Losses that are a given function of the parameters, and targets of files."""

from pathlib import Path

import torch
from torch import nn

from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from curvcli.objective.objective import Objective


class Point(nn.Module):
    """Parameters that are a point; the loss is a function of it."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))


def surface(start: list[float], function, offset: float = 0.0, scale: float = 1.0) -> Objective:  # type: ignore[no-untyped-def]
    """L(w) = scale · (function(w) + offset), one batch that is only a number."""
    return objective_of(
        Point(start),
        [Batch(None, 1, splittable=False)],
        lambda model, _: (scale * (function(model.w) + offset), 1.0),
    )


def load(path: Path, **flags: object) -> Subject:
    """What a target file names, with some settings changed."""
    spec, _ = resolve_target(str(path), dict(flags), ("saddle",))
    return Subject(spec)
