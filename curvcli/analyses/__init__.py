"""One file = one subcommand = one question.

To add an analysis: write its module with an ``ANALYSIS`` and name it below. It then has a command with
``--help``, a table, JSON with a schema, Markdown and HTML.
"""

import importlib

from curvcli.analyses.analysis import Analysis

MODULES = {
    "hessian": "curvcli.analyses.hessian",
    "density": "curvcli.analyses.density",
    "trace": "curvcli.analyses.trace",
    "saddle": "curvcli.analyses.saddle",
    "taylor": "curvcli.analyses.taylor",
    "backprop": "curvcli.analyses.backprop",
    "step": "curvcli.analyses.step",
    "info": "curvcli.analyses.info",
    "init": "curvcli.analyses.init",
    "gradients": "curvcli.analyses.gradients",
    "jacobian": "curvcli.analyses.jacobian",
    "doctor": "curvcli.analyses.doctor",
    "compare": "curvcli.analyses.compare",
    "track": "curvcli.analyses.track",
    "check": "curvcli.health.check",
}


def get(name: str) -> Analysis:
    """The analysis of that name; its module is imported now, torch only when it runs."""
    analysis = importlib.import_module(MODULES[name]).ANALYSIS
    assert isinstance(analysis, Analysis)
    return analysis
