"""`curvcli backprop`: is the gradient that the model computes the gradient of its loss?"""

from typing import Annotated

from msgspec import Meta, Struct

from curvcli.analyses.shared.analysis import Analysis
from curvcli.analyses.shared.context import Context, Stage
from curvcli.report.data import Block, Column, Facts, Sentence, Table


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


class BackpropResult(Struct, frozen=True):
    """The gradient against hand-written identities and finite differences, in float64."""

    identities: list[IdentityCheck]
    slopes: list[SlopeCheck]
    samples: int
    tolerance: float
    slope_tolerance: float
    passed: bool
    parameters: int


def backprop(
    context: Context,
    *,
    samples: Annotated[int, Meta(ge=1, description="Samples of the first batch to check on.")] = 16,
    tol: Annotated[float, Meta(gt=0, description="Relative error allowed in an identity.")] = 1e-8,
    slope_tol: Annotated[
        float, Meta(gt=0, description="Relative error allowed against finite differences.")
    ] = 1e-4,
) -> BackpropResult:
    """Whether the gradient is that of the loss: identities by hand, finite differences.

    For every linear, convolution and embedding layer ∂L/∂W from autograd is held against δᵀx from the recorded
    inputs and output gradients, ∂L/∂b against Σδ; and for every parameter a directional derivative against a
    central difference of the loss. All in float64, so that a wrong hand-written backward or a detached branch is
    found and named.

    Args:
        context: the target.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    from curvcli.analyses.backprop.identities import BackpropCheck

    context.progress(Stage("loading", 0, None))
    check = BackpropCheck(context.objective, samples)
    cost = context.objective.cost
    cost.gradients += 1
    identities = [
        IdentityCheck(i.parameter, i.layers, i.kind, i.norm, i.error, i.error <= tol)
        for i in check.identities()
    ]
    slopes = [
        SlopeCheck(s.parameter, s.exact, s.difference, s.error, s.error <= slope_tol)
        for s in check.slopes(
            context.spec.seed,
            lambda done, all_: context.progress(Stage("finite differences", done, all_)),
        )
    ]
    for identity in identities:
        if not identity.passed:
            context.find(
                "backprop.identity", "error", identity.parameter,
                f"the gradient of {identity.parameter} is not δᵀx of {', '.join(identity.layers)}: a hook or a "
                "custom function changes it behind the layer",
                value=identity.error, threshold=tol,
            )  # fmt: skip
    wrong = [s for s in slopes if not s.passed]
    for slope in wrong:
        context.find(
            "backprop.slope", "error", slope.parameter,
            f"the gradient of {slope.parameter} is not that of the loss (gᵀv = {slope.exact:.4g}, finite difference "
            f"{slope.difference:.4g}): a wrong backward or a detached branch lies between it and the loss",
            value=slope.error, threshold=slope_tol,
        )  # fmt: skip
    if wrong:
        right = [s.parameter for s in slopes if s.passed]
        last = wrong[-1].parameter
        after = right[0] if right and slopes.index(wrong[-1]) + 1 < len(slopes) else None
        context.notes.append(
            f"parameters up to {last!r} are wrong"
            + (f", later ones are right: the fault lies behind {last!r}" if after else "")
        )
    return BackpropResult(
        identities=identities,
        slopes=slopes,
        samples=check.samples,
        tolerance=tol,
        slope_tolerance=slope_tol,
        passed=all(i.passed for i in identities) and not wrong,
        parameters=context.objective.dimension,
    )


def view(result: BackpropResult) -> list[Block]:
    """Both checks, one row for each parameter."""
    slopes = {s.parameter: s for s in result.slopes}
    identities = {i.parameter: i for i in result.identities}
    rows = [
        (
            name,
            identities[name].kind if name in identities else "",
            identities[name].error if name in identities else None,
            slope.error,
            slope.passed and (name not in identities or identities[name].passed),
        )
        for name, slope in slopes.items()
    ]
    table = Table(
        "Gradient checks in float64",
        (
            Column("parameter", numeric=False),
            Column("layer", numeric=False),
            Column("δᵀx error"),
            Column("difference error"),
            Column("passed", numeric=False),
        ),
        rows,
        "δᵀx error: autograd against the identity by hand. difference error: against finite differences.",
    )
    facts = Facts([("samples", result.samples), ("parameters", result.parameters)])
    verdict = (
        Sentence("The gradient is that of the loss.", "good")
        if result.passed
        else Sentence("The gradient is NOT that of the loss: see the findings.", "bad")
    )
    return [facts, table, verdict]


ANALYSIS = Analysis(backprop, view)
