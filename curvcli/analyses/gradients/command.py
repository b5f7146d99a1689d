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
    """Activations and gradients by layer: what vanishes, explodes, saturates or dies, and why.

    One backward pass shows every layer in execution order, the gain of the gradient per layer (χ) along the trunk
    of the network, its decay in time in recurrent layers, attention entropy, and the noise of the gradient.
    Findings compare gradients with each other: they do not change when the loss is multiplied by a constant.
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


QUESTION = Question("gradients", GradientsOptions, GradientsResult, view, headline)
