"""The options of `curvcli track`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.spectrum.matrix_options import StateOption
from curvcli.analyses.track.headline import headline
from curvcli.analyses.track.result import (
    TrackResult,
)
from curvcli.analyses.track.view import view


class TrackOptions(Struct, frozen=True, kw_only=True):
    """Curvature over training: λ_max, λ_min, trace, stationarity and loss by checkpoint.

    Takes checkpoints, or a directory of them; a target file before them gives model, data and loss. Step, learning
    rate and optimizer come from the checkpoints themselves, else the step from their names. Each checkpoint starts
    from the eigenvectors of the one before and a random part, which keeps the reach valid. A checkpoint that cannot be
    read is a finding; the rest are reported. Findings over time: when a run died, units that died, a loss that rises,
    λ_max at the limit for long, parameters that stopped, ranks that fall, a batch far from the noise scale.
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
        float, Meta(gt=0, lt=1, description="With which the reach at both ends holds.")
    ] = 0.999
    loss_floor: Annotated[float, "L*, the lowest value the loss can take."] = 0.0
    warm: Annotated[
        bool, "Start from the eigenvectors of the checkpoint before; --no-warm: from scratch."
    ] = True
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None
    state: StateOption = None


QUESTION = Question("track", TrackOptions, TrackResult, view, headline, targets="series")
