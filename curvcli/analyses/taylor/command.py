"""The options of `curvcli taylor`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.question import Question
from curvcli.analyses.taylor.headline import headline
from curvcli.analyses.taylor.result import TaylorResult
from curvcli.analyses.taylor.view import view

PLAIN = ("gradient", "top", "bottom", "random")
STEPS = ("newton", "newton-npc", "saddle-free", "gauss-newton", "lbfgs")


class TaylorOptions(Struct, frozen=True, kw_only=True):
    """How far a step can go before a quadratic model of the loss is wrong.

    Compares the loss along a direction with its value, slope and curvature here: along the gradient, the directions
    of largest and smallest curvature, a random one, the steps of `curvcli step`, or the way to another checkpoint.
    Says how far the model is right to 10 %, the best step on each line, and the largest stable learning rate 2/λ.
    """

    direction: Annotated[
        list[str],
        f"Along this; repeatable: {', '.join((*PLAIN, *STEPS))}.  [default: {', '.join(PLAIN)}]",
    ] = []
    to: Annotated[str | None, "Also along the line to this other checkpoint of the model."] = None
    trust: Annotated[
        float, Meta(gt=0, description="Relative error up to which the model is right.")
    ] = 0.1
    points: Annotated[int, Meta(ge=5, description="Distances looked at on each line.")] = 21
    tol: Annotated[float, Meta(gt=0, description="Of the extreme eigenvalues, relative.")] = 1e-3
    max_matvecs: Annotated[int, Meta(ge=2, description="Products to spend on eigenvectors.")] = 200
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None


_MEANING = (
    "The second-order model is what Newton's method, quadratic bounds on the learning rate and influence "
    "functions rest on. Within the radius it is right to a tenth; beyond, conclusions from curvature do "
    "not hold."
)

QUESTION = Question(
    "taylor",
    TaylorOptions,
    TaylorResult,
    view,
    headline,
    divides=(),
    wanted=lambda _: 10,
    meaning=_MEANING,
)
