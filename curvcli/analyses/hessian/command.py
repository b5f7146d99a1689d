"""The options of `curvcli hessian`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.hessian.headline import headline
from curvcli.analyses.hessian.result import HessianResult
from curvcli.analyses.hessian.view import view
from curvcli.analyses.shared.question import Question
from curvcli.analyses.shared.spectrum.matrix_options import (
    DrawsOption,
    ExactOption,
    MatrixOption,
    OptimizerOption,
    StateOption,
)


class HessianOptions(Struct, frozen=True, kw_only=True):
    """How sharp the loss is: the largest and smallest eigenvalues of its Hessian.

    The largest eigenvalue λ is the sharpness: plain gradient descent is stable for learning rates below 2/λ. A negative
    one is a direction in which the loss curves downwards. Each is found by Lanczos and comes with its error: some
    eigenvalue lies within value ± residual. The reach says how far any other one can lie beyond what was found, and
    with which probability.
    """

    matrix: MatrixOption = "hessian"
    top: Annotated[int, Meta(ge=0, description="Largest eigenvalues to find.")] = 10
    bottom: Annotated[int, Meta(ge=0, description="Smallest eigenvalues to find.")] = 3
    order: Annotated[
        Literal["value", "magnitude"],
        "What the top ones are: largest by value, or by magnitude (either sign).",
    ] = "value"
    tol: Annotated[
        float, Meta(gt=0, description="Relative error at which an eigenvalue counts as converged.")
    ] = 1e-3
    max_matvecs: Annotated[
        int,
        Meta(
            ge=1,
            description="Stop after so many products; each costs about two gradients.",
        ),
    ] = 500
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None
    probability: Annotated[
        float,
        Meta(gt=0, lt=1, description="Probability with which no eigenvalue lies beyond the reach."),
    ] = 0.999
    recheck: Annotated[
        int, Meta(ge=0, description="Products spent on looking for missed copies of eigenvalues.")
    ] = 8
    spread: Annotated[
        int,
        Meta(
            ge=0,
            description="Groups of samples of a single batch for the spread of each eigenvalue over the data; "
            "0: no spread.",
        ),
    ] = 8
    state: StateOption = None
    save_vectors: Annotated[
        str | None,
        "Write the eigenvectors to this .safetensors file: one tensor a parameter, of shape (K, *parameter).",
    ] = None
    optimizer: OptimizerOption = None
    draws: DrawsOption = 1
    exact_rows: ExactOption = 256
    per_layer: Annotated[bool, "The curvature of every layer beside that of the whole."] = False
    per_block: Annotated[
        bool, "The same for numbered blocks, such as blocks.0 of a transformer, as wholes."
    ] = False
    layer_probes: Annotated[
        int, Meta(ge=1, description="Random vectors for the traces and norms of layers.")
    ] = 8
    layer_density: Annotated[
        int,
        Meta(
            ge=0,
            description="Random vectors for the spectral densities of layers and their heterogeneity; 0: none.",
        ),
    ] = 0


_MEANING = (
    "An eigenvalue of the Hessian is the curvature of the loss along its eigenvector. The largest one "
    "bounds the learning rate: gradient descent with a rate above 2/λ grows along that direction. Along "
    "one that is negative the surface bends downwards. A few large ones far above the rest are usual for "
    "classifiers, about one for each class."
)

QUESTION = Question(
    "hessian",
    HessianOptions,
    HessianResult,
    view,
    headline,
    divides=("matrix=preconditioned",),
    wanted=lambda o: o.top + o.bottom,
    meaning=_MEANING,
)
