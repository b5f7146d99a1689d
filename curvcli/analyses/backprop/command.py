"""The options of `curvcli backprop`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.backprop.headline import headline
from curvcli.analyses.backprop.result import BackpropResult
from curvcli.analyses.backprop.view import view
from curvcli.analyses.shared.question import Question


class BackpropOptions(Struct, frozen=True, kw_only=True):
    """Check that the backward pass is right, also that of your own layers.

    Gradients of linear, convolution and embedding layers are worked out again by hand, and every parameter's
    gradient is held against finite differences of the loss, all in float64. A wrong custom backward, a .detach()
    too many or a missing parameter is found and named.
    """

    samples: Annotated[int, Meta(ge=1, description="Samples of the first batch to check on.")] = 16
    tol: Annotated[float, Meta(gt=0, description="Relative error allowed in an identity.")] = 1e-8
    slope_tol: Annotated[
        float, Meta(gt=0, description="Relative error allowed against finite differences.")
    ] = 1e-4


_MEANING = (
    "Two independent checks of every parameter's gradient: against an identity by hand and against finite "
    "differences. An error far above rounding means that a backward pass is wrong, and that training "
    "follows something else than the loss."
)

QUESTION = Question("backprop", BackpropOptions, BackpropResult, view, headline, meaning=_MEANING)
