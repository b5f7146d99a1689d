"""The questions by name: to add one, write its folder and name it in a group."""

import importlib

from curvcli.analyses.shared.question import Question

GROUPS: dict[str, tuple[str, ...]] = {
    "Start": ("init", "info", "doctor"),
    "Curvature": (
        "hessian",
        "saddle",
        "lr",
        "taylor",
        "step",
        "trace",
        "density",
        "landscape",
        "sharpness",
    ),
    "Signals": ("gradients", "jacobian", "backprop"),
    "Over time": ("track", "compare"),
    "To show": ("report",),
    "In CI": ("check",),
}
"""As `--help` shows them."""
NAMES = tuple(name for names in GROUPS.values() for name in names)


def get(name: str) -> Question:
    """The question of that name; its options are imported now, torch only when it is asked."""
    question = importlib.import_module(f"curvcli.analyses.{name}.command").QUESTION
    assert isinstance(question, Question)
    return question
