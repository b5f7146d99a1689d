"""The options of `curvcli backprop`."""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.backprop.headline import headline
from curvcli.analyses.backprop.result import BackpropResult
from curvcli.analyses.backprop.view import view
from curvcli.analyses.shared.question import Question


class BackpropOptions(Struct, frozen=True, kw_only=True):
    """Whether the gradient is that of the loss: identities by hand, finite differences.

    For every linear, convolution and embedding layer ∂L/∂W from autograd is held against δᵀx from the recorded
    inputs and output gradients, ∂L/∂b against Σδ; and for every parameter a directional derivative against a
    central difference of the loss. All in float64, so that a wrong hand-written backward or a detached branch is
    found and named.
    """

    samples: Annotated[int, Meta(ge=1, description="Samples of the first batch to check on.")] = 16
    tol: Annotated[float, Meta(gt=0, description="Relative error allowed in an identity.")] = 1e-8
    slope_tol: Annotated[
        float, Meta(gt=0, description="Relative error allowed against finite differences.")
    ] = 1e-4


QUESTION = Question("backprop", BackpropOptions, BackpropResult, view, headline)
