"""The questions by name: to add one, write its folder and name it here."""

import importlib

from curvcli.analyses.shared.question import Question

NAMES = (
    "hessian",
    "density",
    "trace",
    "saddle",
    "taylor",
    "backprop",
    "step",
    "lr",
    "info",
    "init",
    "gradients",
    "jacobian",
    "doctor",
    "compare",
    "track",
    "check",
)


def get(name: str) -> Question:
    """The question of that name; its options are imported now, torch only when it is asked."""
    question = importlib.import_module(f"curvcli.analyses.{name}.command").QUESTION
    assert isinstance(question, Question)
    return question
