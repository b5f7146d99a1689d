"""The options of `curvcli track`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.spectrum.matrix_options import StateOption
from curvcli.analyses.track.headline import headline
from curvcli.analyses.track.result import (
    TrackResult,
)
from curvcli.analyses.track.view import about, view


class TrackOptions(Struct, frozen=True, kw_only=True):
    """How sharpness and health develop over the checkpoints of a training run.

    Give a target file (model, data and loss), then the checkpoints or a directory of them. Step, learning rate and
    optimizer come from the checkpoints, else the step from their names. Says when a run died, which units died,
    whether sharpness is at the limit of the learning rate, and what stopped moving. A checkpoint that cannot be
    read is named; the others are shown.
    """

    lr: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="Learning rate of gradient descent: λ_max is held against 2/lr, whatever the checkpoints say."
        ),
    ] = None
    train_batch: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Batch size of the training: held against the noise scale of the gradient."
        ),
    ] = None
    tol: Annotated[float, Meta(gt=0, description="Of the extreme eigenvalues, relative.")] = 1e-2
    max_matvecs: Annotated[
        int, Meta(ge=2, description="Products for the eigenvalues of one checkpoint at most.")
    ] = 200
    probes: Annotated[
        int, Meta(ge=0, description="Products for the trace of each checkpoint; 0: no trace.")
    ] = 8
    probability: Annotated[
        float,
        Meta(gt=0, lt=1, description="Probability with which no eigenvalue lies beyond the reach."),
    ] = 0.999
    loss_floor: Annotated[float, "L*, the lowest value the loss can take."] = 0.0
    warm: Annotated[
        bool, "Start from the eigenvectors of the checkpoint before; --no-warm: from scratch."
    ] = True
    figure: Annotated[
        list[str],
        "Figure of any analysis at every checkpoint too, named as in rules of check: sharpness.average.value; "
        "repeatable.",
    ] = []
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None
    state: StateOption = None


_MEANING = (
    "Sharpness usually rises until it is near 2/lr, the edge of stability, and stays there. A jump of it "
    "goes before many losses that diverge."
)

QUESTION = Question(
    "track",
    TrackOptions,
    TrackResult,
    view,
    headline,
    targets="series",
    divides=("state",),
    meaning=_MEANING,
    about=about,
)
