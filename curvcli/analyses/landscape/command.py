"""The options of `curvcli landscape`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.landscape.arrays import arrays
from curvcli.analyses.landscape.headline import headline
from curvcli.analyses.landscape.result import LandscapeResult
from curvcli.analyses.landscape.view import view
from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.spectrum.matrix_options import StateOption

ALONG = ("random", "eigen", "bottom", "gradient", "adam", "pca")


class LandscapeOptions(Struct, frozen=True, kw_only=True):
    """The loss along a line or over a plane: a bowl, a ridge, a barrier on the way?

    One direction gives a curve, two a map. random: as long as the weights, filter by filter (Li et al. 2018); eigen,
    bottom: of largest and of smallest curvature; gradient: downhill; adam: the step of the optimizer in the
    checkpoint; pca: the plane in which the checkpoints of --to lie best, with their path. --to alone: the line to one
    checkpoint, the plane through two and the weights. The quadratic model of the same directions is drawn in.
    """

    along: Annotated[
        list[str],
        f"Along this; twice for a map: {', '.join(ALONG)}.  [default: random, or --to]",
    ] = []
    to: Annotated[
        list[str],
        "Checkpoint that the line or plane goes through; repeatable. With --along pca: a series, or its directory.",
    ] = []
    dims: Annotated[
        Literal[1, 2] | None, "Curve or map; default: as many as there are directions."
    ] = None
    radius: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="How far, in lengths of the direction (random: 1, adam: 10 steps, eigen and gradient: until "
            "the model has changed by some times the loss); --to and pca: beyond the checkpoints, as a share (0.25)."
        ),
    ] = None
    points: Annotated[
        Annotated[int, Meta(ge=5, le=501)] | None,
        Meta(
            description="Points on each axis before it is refined; default: 25 of a curve, 17 of a map."
        ),
    ] = None
    refine: Annotated[
        int, Meta(ge=0, description="Points more, where a curve bends or the model fails, at most.")
    ] = 24
    trust: Annotated[
        float, Meta(gt=0, description="Relative error up to which the quadratic model is right.")
    ] = 0.1
    other_data: Annotated[str | None, "Also the loss on this data, e.g. that of validation."] = None
    norm_statistics: Annotated[
        Literal["keep", "recompute"] | None,
        "Running statistics of BatchNorm: as they are, or gathered from the data at every point; default: recompute "
        "where --to is given, else keep.",
    ] = None
    optimizer: Annotated[
        str | None, "File with the state of Adam, for adam; default: the checkpoint itself."
    ] = None
    max_matvecs: Annotated[int, Meta(ge=2, description="Products to spend on eigenvectors.")] = 200
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None
    state: StateOption = None


_MEANING = (
    "The loss along directions through the weights. A line is one cut through millions of dimensions: "
    "along a random one nearly every network looks like a bowl. The quadratic model shows how far "
    "curvature at the centre explains the shape."
)

QUESTION = Question(
    "landscape",
    LandscapeOptions,
    LandscapeResult,
    view,
    headline,
    arrays=arrays,
    divides=("along=adam",),
    wanted=lambda _: 5,
    meaning=_MEANING,
)
