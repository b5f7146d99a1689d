"""The options of `curvcli compare`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.compare.headline import headline
from curvcli.analyses.compare.result import (
    CompareResult,
)
from curvcli.analyses.compare.view import about, view
from curvcli.analyses.shared.question import Question


class CompareOptions(Struct, frozen=True, kw_only=True):
    """Which of two checkpoints is better, and what differs beyond the error of the figures.

    Runs the same analyses on both, on the same data: loss and sharpness side by side, the directions of largest
    curvature, the loss on the straight line between them, and the layers that moved. A single target is compared with
    itself: --weights ema takes the average in the same file as B, --other-data takes other data.
    """

    analysis: Annotated[
        list[str], "Analysis whose figures are compared; repeatable.  [default: hessian, gradients]"
    ] = []
    subspace: Annotated[
        int, Meta(ge=0, description="Dimension of the leading eigenspaces compared; 0: none.")
    ] = 5
    points: Annotated[
        int, Meta(ge=3, description="Losses looked at on the line between the checkpoints.")
    ] = 21
    confidence: Annotated[
        float, Meta(gt=0, lt=1, description="Of the intervals of numbers with a standard error.")
    ] = 0.999
    other_data: Annotated[
        str | None,
        "Data of B, e.g. that of training, with --data for A: what differs beyond sampling? One target will do.",
    ] = None
    per_class: Annotated[bool, "Also compare loss and largest eigenvalue of every class."] = False
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None


_MEANING = (
    "A difference counts where it is beyond the error of the figures. A barrier on the way between both "
    "checkpoints means that they are in different valleys, so that averaging them will not do."
)

QUESTION = Question(
    "compare",
    CompareOptions,
    CompareResult,
    view,
    headline,
    targets="pair",
    divides=(),
    meaning=_MEANING,
    about=about,
)
