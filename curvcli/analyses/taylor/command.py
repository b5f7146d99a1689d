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
    """Predicted against true loss along directions, and the radius of trust.

    Compares L(θ + tΔ) with L + t gᵀΔ + t²/2 ΔᵀHΔ for Δ = −gradient, the top and bottom eigenvectors, a random
    direction, the steps of `curvcli step`, or the way to another checkpoint. Reports how far the model is right,
    the best step on each line, and the largest stable learning rate 2/λ_max.
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
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None


QUESTION = Question("taylor", TaylorOptions, TaylorResult, view, headline)
