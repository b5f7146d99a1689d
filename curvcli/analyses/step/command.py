"""The options of `curvcli step`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.question import Question
from curvcli.analyses.step.headline import headline
from curvcli.analyses.step.result import StepResult
from curvcli.analyses.step.view import view

METHODS = ("gradient", "newton", "newton-npc", "saddle-free", "gauss-newton", "lbfgs")


class StepOptions(Struct, frozen=True, kw_only=True):
    """One step by each method: its length, predicted and true change of the loss.

    gradient (exact line minimum of the model), newton (MINRES, through negative curvature), newton-npc (MINRES
    that stops at negative curvature and follows it), saddle-free (|H|⁻¹ on computed eigenvectors), gauss-newton
    (damped, conjugate gradients), lbfgs (a history of a few line-searched steps).
    """

    method: Annotated[list[str], f"Only this method; repeatable: {', '.join(METHODS)}."] = []
    save: Annotated[
        str | None, "Write the weights after the best step to this safetensors file."
    ] = None
    damping: Annotated[
        float, Meta(ge=0, description="Relative to ‖H‖, of Gauss-Newton and saddle-free Newton.")
    ] = 1e-3
    tol: Annotated[float, Meta(gt=0, description="Relative residual of the linear systems.")] = 1e-6
    max_matvecs: Annotated[int, Meta(ge=1, description="Products of one method at most.")] = 200
    pairs: Annotated[
        int, Meta(ge=1, description="Eigenpairs at each end for saddle-free Newton.")
    ] = 10
    history: Annotated[int, Meta(ge=1, description="Steps that L-BFGS learns from.")] = 8
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None


QUESTION = Question("step", StepOptions, StepResult, view, headline)
