"""The options of `curvcli saddle`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.saddle.headline import headline
from curvcli.analyses.saddle.result import (
    SaddleResult,
)
from curvcli.analyses.saddle.view import view
from curvcli.analyses.shared.question import Question


class SaddleOptions(Struct, frozen=True, kw_only=True):
    """Where training stands: in a minimum, at a saddle point, or still on a slope.

    A saddle point is proven by a direction along which the loss falls, and by walking along it. It says minimum when
    the chance of an overlooked downhill direction is under 0.1 %. Where neither is certain, it says what it would take.
    """

    grad_tol: Annotated[float, Meta(gt=0, description="Stationary when ρ is at most this.")] = 1e-3
    flatness: Annotated[
        float, Meta(ge=0, description="Share of ‖H‖ that a flat minimum may bend downwards.")
    ] = 1e-3
    loss_floor: Annotated[float, "L*, the lowest value the loss can take."] = 0.0
    tol: Annotated[float, Meta(gt=0, description="Of the extreme eigenvalues, relative.")] = 1e-2
    max_matvecs: Annotated[int, Meta(ge=2, description="Products to spend at most.")] = 300
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None
    probability: Annotated[float, Meta(gt=0, lt=1, description="With which the reach holds.")] = (
        0.999
    )
    index: Annotated[bool, "Also estimate the number of negative eigenvalues."] = False
    index_probes: Annotated[int, Meta(ge=2, description="Random vectors of that estimate.")] = 8


_MEANING = (
    "At a minimum every small move raises the loss; at a saddle point some move lowers it. Most training "
    "ends at neither: while the gradient is more than curvature explains, the weights are still on their "
    "way down."
)

QUESTION = Question(
    "saddle",
    SaddleOptions,
    SaddleResult,
    view,
    headline,
    divides=(),
    wanted=lambda _: 4,
    meaning=_MEANING,
)
