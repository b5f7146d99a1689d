"""The curvature matrices by name, and the options that choose one."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from curvcli.report.data import Number

Matrix = Literal["hessian", "ggn", "fisher", "empirical-fisher", "preconditioned"]

MatrixOption = Annotated[
    Matrix,
    "hessian: ∇²L; ggn: generalised Gauss-Newton; fisher: outer products of gradients at targets drawn from "
    "the model; empirical-fisher: at those of the data; preconditioned: D^(-1/2) ∇²L D^(-1/2), D from "
    "--optimizer.",
]
DrawsOption = Annotated[
    int, Meta(ge=1, description="Targets drawn for each datum, for the Fisher matrix.")
]
OptimizerOption = Annotated[
    str | None,
    "File with the state of Adam (AdamW, RMSprop, Adagrad), for the preconditioned Hessian.  [default: the checkpoint]",
]
StateOption = Annotated[str | None, "Save the run in this file, and go on from it if it exists."]
ExactOption = Annotated[
    int,
    Meta(
        ge=0,
        description="Up to so many rows (data × outputs) the whole spectrum of ggn and Fisher matrices is computed "
        "exactly, from the Gram matrix of the rows; 0: never.",
    ),
]

TITLES: dict[Matrix, str] = {
    "hessian": "Hessian",
    "ggn": "Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "empirical-fisher": "empirical Fisher matrix",
    "preconditioned": "preconditioned Hessian",
}


class PreconditionerInfo(Struct, frozen=True):
    """The optimizer whose coordinates the Hessian is seen in."""

    algorithm: str
    steps: int
    learning_rate: Number
    stability_threshold: Annotated[
        Number, Meta(description="eigenvalues above this make its steps grow")
    ]
