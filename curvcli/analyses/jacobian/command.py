"""The options of `curvcli jacobian`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.analyses.jacobian.headline import headline
from curvcli.analyses.jacobian.result import JacobianResult
from curvcli.analyses.jacobian.view import view
from curvcli.analyses.shared.question import Question


class JacobianOptions(Struct, frozen=True, kw_only=True):
    """How much the outputs change when the inputs do: singular values of the Jacobian.

    Needs data, but no targets and no loss. --per-layer follows the signal through the layers, --wrt and --of choose an
    inner pair; recurrent layers are followed through time; --wrt parameters gives the neural tangent kernel.
    """

    wrt: Annotated[
        str | None,
        "With respect to: the input of this MODULE, a named input, or 'parameters'. "
        "Default: the model's input (of tokens: their embeddings).",
    ] = None
    of: Annotated[str | None, "Output of this MODULE; default: the model's output."] = None
    output_key: Annotated[
        str | None,
        "Which of several outputs (-o is the file): names and indices joined by dots, e.g. 1.0 or logits.",
    ] = None
    top: Annotated[int, Meta(ge=1, description="Leading singular values to find.")] = 5
    exact: Annotated[
        int,
        Meta(
            ge=0,
            description="Form the matrices whose shorter side is at most this; beyond, Golub-Kahan-Lanczos.",
        ),
    ] = 64
    method: Annotated[
        Literal["auto", "dense", "golub-kahan"], "How singular values are computed."
    ] = "auto"
    tol: Annotated[
        float, Meta(gt=0, description="Converged when the residual is ≤ tol · max(σ, 0.01 σ₁).")
    ] = 1e-3
    max_matvecs: Annotated[
        int, Meta(ge=2, description="Products with J and Jᵀ for one piece of the batch at most.")
    ] = 300
    probes: Annotated[
        int, Meta(ge=2, description="Random vectors for a Frobenius norm that is not exact.")
    ] = 16
    sample: Annotated[list[int] | None, "Only the sample of this number; repeatable."] = None
    full: Annotated[bool, "Print whole matrices, where they are small."] = False
    per_layer: Annotated[bool, "The Jacobian of every module in the main path."] = False
    layer_samples: Annotated[
        int, Meta(ge=1, description="Samples that --per-layer and the time Jacobian look at.")
    ] = 16
    time: Annotated[bool, "The time Jacobian of recurrent layers, if there are any."] = True
    timeout: Annotated[
        str | None, "Stop after this time, e.g. 90s or 5m, and show what is known by then."
    ] = None


_MEANING = (
    "Singular values of the Jacobian say how much outputs move when inputs move: the largest for the most "
    "sensitive direction. Values near 1 in every layer (χ = 1) let signals through without stretching "
    "them."
)

QUESTION = Question(
    "jacobian",
    JacobianOptions,
    JacobianResult,
    view,
    headline,
    named=("model", "data"),
    meaning=_MEANING,
)
