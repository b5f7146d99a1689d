"""The options of `curvcli sharpness`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.question import Question
from curvcli.analyses.sharpness.headline import headline
from curvcli.analyses.sharpness.result import SharpnessResult
from curvcli.analyses.sharpness.view import view

MEASURES = (
    "worst", "average", "pac-bayes", "relative-flatness", "fisher-rao", "m-sharpness",
)  # fmt: skip
USUAL = MEASURES[:-1]


class SharpnessOptions(Struct, frozen=True, kw_only=True):
    """How flat the minimum is, also by measures that rescaling layers does not change.

    worst: the largest rise of the loss within a ball of radius ρ (Foret et al. 2021, SAM); average: the mean rise under
    Gaussian noise of that length; pac-bayes: the noise σ under which the loss rises by --rise; each also adaptive, in
    proportion to the weights (Kwon et al. 2021). relative-flatness: Petzka et al. 2021, by weight; fisher-rao: Liang et
    al. 2019; m-sharpness: worst case over shards of --shard samples, averaged. Multiplying a ReLU layer by a and
    dividing the next one by a changes nothing in the function: the answer says which measures it changes.
    """

    measure: Annotated[
        list[str],
        f"Only this; repeatable: {', '.join(MEASURES)}.  [default: all but m-sharpness]",
    ] = []
    rho: Annotated[float, Meta(gt=0, description="Radius ρ of the ball.")] = 0.05
    rho_adaptive: Annotated[
        float, Meta(gt=0, description="Radius in units of the weights, of the adaptive measures.")
    ] = 0.5
    rise: Annotated[
        float, Meta(gt=0, description="Rise of the expected loss that pac-bayes looks for.")
    ] = 0.1
    draws: Annotated[int, Meta(ge=2, description="Pairs ± of random vectors.")] = 20
    probes: Annotated[int, Meta(ge=2, description="Products for relative flatness.")] = 20
    steps: Annotated[int, Meta(ge=1, description="Steps of each ascent at most.")] = 15
    shard: Annotated[int, Meta(ge=1, description="Samples m of a shard, for m-sharpness.")] = 16
    shards: Annotated[int, Meta(ge=2, description="Shards looked at, at most.")] = 16
    max_matvecs: Annotated[
        int, Meta(ge=2, description="Products for the largest eigenvalue at most.")
    ] = 100
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None


_MEANING = (
    "How much the loss rises around the weights. Measures that rescaled layers change say little across "
    "networks; those that they leave alone may be compared. Small is flat."
)

QUESTION = Question(
    "sharpness",
    SharpnessOptions,
    SharpnessResult,
    view,
    headline,
    divides=(),
    wanted=lambda _: 5,
    meaning=_MEANING,
)
