"""Options that choose a curvature matrix, and the matrix they choose."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from curvcli.analyses.shared.context import Context
from curvcli.report.data import Number

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.operators.curvature.curvature import Curvature

Matrix = Literal["hessian", "ggn", "fisher", "empirical-fisher", "preconditioned"]

MatrixOption = Annotated[
    Matrix,
    "hessian: ∇²L; ggn: generalised Gauss-Newton; fisher: outer products of gradients at targets drawn from "
    "the model; empirical-fisher: at those of the data; preconditioned: D^(-1/2) ∇²L D^(-1/2), D from --optimizer.",
]
DrawsOption = Annotated[
    int, Meta(ge=1, description="Targets drawn for each datum, for the Fisher matrix.")
]
OptimizerOption = Annotated[
    str | None,
    "File with the state of Adam (AdamW, RMSprop, Adagrad), for the preconditioned Hessian.",
]
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


class Chosen(Struct, frozen=True):
    """Which matrix, with what it is made from."""

    matrix: Matrix
    draws: int
    optimizer: str | None

    def operator(
        self, context: Context, **options: Any
    ) -> "tuple[Curvature[Any], PreconditionerInfo | None]":
        """The matrix as a linear map; ``options`` are those of `Curvature`.

        Raises:
            UsageError: an option is missing, or has no meaning for this matrix.
            CurvError: what is needed cannot be read, or does not exist for this loss.
        """
        from curvcli.errors import UsageError
        from curvcli.operators.curvature.matrices import curvature

        if self.optimizer is not None and self.matrix != "preconditioned":
            raise UsageError(
                f"--optimizer has no meaning for --matrix {self.matrix}",
                "pass --matrix preconditioned, or leave it out",
            )
        if self.optimizer is None and self.matrix == "preconditioned":
            raise UsageError(
                "the preconditioned Hessian needs the optimizer's second moments",
                "pass --optimizer with a file that holds the state of Adam",
            )
        if self.matrix == "fisher":
            context.notes.append(
                f"the Fisher matrix is that of {self.draws} drawn target(s) for each datum; others (--seed) or more "
                "(--draws) give another: `hessian` says by how much. For cross_entropy, mse and bce_with_logits ggn is "
                "its expectation"
            )
        diagonal_N, info = None, None
        if self.optimizer is not None:
            diagonal_N, info = _preconditioner(context, self.optimizer)
        operator = curvature(
            context.objective,
            self.matrix,
            draws=self.draws,
            seed=context.spec.seed,
            diagonal_N=diagonal_N,
            memory=context.spec.memory_bytes,
            **options,
        )
        return operator, info


def _preconditioner(context: Context, file: str) -> "tuple[Tensor, PreconditionerInfo]":
    from curvcli.errors import some
    from curvcli.loading.checkpoints.moments import read_preconditioner

    objective = context.objective
    shapes = {n: tuple(p.shape) for n, p in objective.model.named_parameters()}
    found = read_preconditioner(Path(file), shapes, unsafe_pickle=context.spec.unsafe_pickle)
    missing = [n for n in found.missing if n in objective.names]
    if missing:
        context.notes.append(
            f"the optimizer has no state for {some(missing)}: no gradient reached them, v̂ = 0"
        )
    diagonal_N = objective.flatten([found.diagonal[n] for n in objective.names])
    return diagonal_N, PreconditionerInfo(
        found.algorithm, found.steps, found.learning_rate, found.stability_threshold
    )
