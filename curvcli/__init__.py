"""curvcli: how the loss surface of a neural network bends, and how signals travel through it.

From Python::

    import curvcli

    subject = curvcli.load("sample_models/digits_mlp.toml", dtype="float64")
    answer = curvcli.analyse("hessian", subject, top=5)
    print(answer.result.top[0].value, "±", answer.result.top[0].residual)

or with objects of your own::

    answer = curvcli.hessian(model, "cross_entropy", (x, y), top=5)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from curvcli.analyses.shared.answer import Answer as Answer
    from curvcli.analyses.shared.journal import Journal as Journal
    from curvcli.analyses.shared.subject import Subject as Subject
    from curvcli.api import analyse as analyse
    from curvcli.api import load as load
    from curvcli.functions import as_linear_operator as as_linear_operator
    from curvcli.functions import backprop as backprop
    from curvcli.functions import check as check
    from curvcli.functions import density as density
    from curvcli.functions import gradients as gradients
    from curvcli.functions import hessian as hessian
    from curvcli.functions import inspect as inspect
    from curvcli.functions import jacobian as jacobian
    from curvcli.functions import landscape as landscape
    from curvcli.functions import lr as lr
    from curvcli.functions import read_answer as read_answer
    from curvcli.functions import saddle as saddle
    from curvcli.functions import sharpness as sharpness
    from curvcli.functions import step as step
    from curvcli.functions import taylor as taylor
    from curvcli.functions import trace as trace
    from curvcli.objective.batch import Batch as Batch
    from curvcli.objective.checks import make_objective as make_objective
    from curvcli.objective.objective import Objective as Objective
    from curvcli.training.lightning_callback import LightningCallback as LightningCallback
    from curvcli.training.monitor import Monitor as Monitor
    from curvcli.training.trainer_callback import TrainerCallback as TrainerCallback

# Imported when they are first asked for: torch takes seconds, and --help needs none of it.
_HOMES = {
    "Answer": "curvcli.analyses.shared.answer",
    "Batch": "curvcli.objective.batch",
    "Journal": "curvcli.analyses.shared.journal",
    "Objective": "curvcli.objective.objective",
    "Subject": "curvcli.analyses.shared.subject",
    "analyse": "curvcli.api",
    "load": "curvcli.api",
    "make_objective": "curvcli.objective.checks",
    "Hessian": "curvcli.operators.curvature.hessian",
    "as_linear_operator": "curvcli.functions",
    "read_answer": "curvcli.functions",
    "inspect": "curvcli.functions",
    "Monitor": "curvcli.training.monitor",
    "LightningCallback": "curvcli.training.lightning_callback",
    "TrainerCallback": "curvcli.training.trainer_callback",
}
_QUESTIONS = (
    "hessian", "density", "trace", "saddle", "taylor", "step", "backprop", "gradients", "jacobian", "lr",
    "check", "landscape", "sharpness",
)  # fmt: skip
_HOMES |= dict.fromkeys(_QUESTIONS, "curvcli.functions")

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'curvcli' has no attribute {name!r}")
