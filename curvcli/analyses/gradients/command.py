"""The options of `curvcli gradients`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.gradients.headline import headline
from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.gradients.rules import RULES
from curvcli.analyses.gradients.view import view
from curvcli.analyses.shared.question import Question

SCHEMES = ("xavier", "kaiming", "orthogonal", "lecun", "default")


class GradientsOptions(Struct, frozen=True, kw_only=True):
    """Whether gradients get through: layers that vanish, explode, saturate or die, and why.

    One backward pass shows activations and gradients of every layer, how much the gradient grows or shrinks from
    layer to layer and over time steps, whether attention has collapsed, and how noisy the gradient is. Multiplying
    the loss by a constant changes no finding.
    """

    worst: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Show only the N layers whose gradient stands out most."),
    ] = None
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Also judge update/weight ratios, for steps of this size."),
    ] = None
    parts: Annotated[
        int, Meta(ge=1, description="Parts of the data whose gradients are compared for the noise.")
    ] = 4
    reinit: Annotated[
        str | None,
        f"Also measure other initialisations, a comma-separated list of {', '.join(SCHEMES)}.",
    ] = None
    seeds: Annotated[int, Meta(ge=1, description="Seeds for each of them.")] = 5
    since: Annotated[
        str | None,
        "Earlier checkpoint of the same network: also find parameters that have not moved since.",
    ] = None
    thresholds: Annotated[
        dict[str, float] | None,
        Meta(
            description=f"Threshold of a rule, name=value; repeatable. Rules: {', '.join(RULES)}."
        ),
    ] = None


_MEANING = (
    "Signals should neither grow nor fade by much from layer to layer. A gain per layer far below 1 means "
    "vanishing gradients, far above 1 exploding ones. Dead units never fire on this data; saturated ones "
    "hardly react to their input. In the map a colour that changes along a column shows where a quantity "
    "grows or fades."
)

QUESTION = Question(
    "gradients", GradientsOptions, GradientsResult, view, headline, meaning=_MEANING
)
