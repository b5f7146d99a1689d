"""The options of `curvcli step`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.question import Question
from curvcli.analyses.step.headline import headline
from curvcli.analyses.step.result import StepResult
from curvcli.analyses.step.view import view

METHODS = ("gradient", "newton", "newton-npc", "saddle-free", "gauss-newton", "lbfgs")


class StepOptions(Struct, frozen=True, kw_only=True):
    """What one step would do: gradient descent, Newton, Gauss-Newton, L-BFGS and more.

    Each method takes one step; the change of the loss that it predicts stands beside the true one. gradient: as far
    as the quadratic model falls; newton: to its critical point, also uphill; newton-npc: the same, but along
    negative curvature where there is some; saddle-free: with |H| instead of H; gauss-newton: damped; lbfgs: from a
    short history.
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
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None


_MEANING = (
    "What one step of each method promises, and what it brings. A prediction far from the truth means "
    "that the quadratic model does not hold over the step."
)

QUESTION = Question(
    "step",
    StepOptions,
    StepResult,
    view,
    headline,
    divides=("save",),
    wanted=lambda o: 2 * o.pairs,
    meaning=_MEANING,
)
