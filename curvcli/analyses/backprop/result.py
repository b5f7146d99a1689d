"""What `curvcli backprop` answers."""

from typing import Annotated

from msgspec import Meta, Struct


class IdentityCheck(Struct, frozen=True):
    """∂L/∂W by autograd against δᵀx by hand."""

    parameter: str
    layers: Annotated[list[str], Meta(description="modules that use it")]
    kind: str
    norm: Annotated[float, Meta(description="of autograd's gradient")]
    error: Annotated[float, Meta(description="relative difference")]
    passed: bool


class SlopeCheck(Struct, frozen=True):
    """A directional derivative by autograd against a central difference of the loss."""

    parameter: str
    exact: Annotated[float, Meta(description="gᵀv, v a random unit vector of this tensor")]
    difference: Annotated[float, Meta(description="(L(θ + hv) − L(θ − hv)) / 2h")]
    error: Annotated[float, Meta(description="relative difference")]
    passed: bool
    decided: Annotated[
        bool,
        Meta(description="false: differences of several lengths and sides differ among themselves"),
    ] = True


class BackpropResult(Struct, frozen=True):
    """The gradient against hand-written identities and finite differences, in float64."""

    identities: list[IdentityCheck]
    slopes: list[SlopeCheck]
    samples: int
    tolerance: float
    slope_tolerance: float
    passed: bool
    parameters: int
