"""The questions by name: to add one, write its folder and name it here."""

import importlib

from curvcli.analyses.shared.analysis import Analysis

NAMES = (
    "hessian",
    "density",
    "trace",
    "saddle",
    "taylor",
    "backprop",
    "step",
    "info",
    "init",
    "gradients",
    "jacobian",
    "doctor",
    "compare",
    "track",
    "check",
)


def get(name: str) -> Analysis:
    """The analysis of that name; its module is imported now, torch only when it runs."""
    analysis = importlib.import_module(f"curvcli.analyses.{name}.run").ANALYSIS
    assert isinstance(analysis, Analysis)
    return analysis
