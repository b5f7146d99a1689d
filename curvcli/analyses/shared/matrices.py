"""The curvature matrix that options choose."""

from pathlib import Path
from typing import Any

from msgspec import Struct
from torch import Tensor

from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.matrix_options import Matrix, PreconditionerInfo
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError, some
from curvcli.loading.checkpoints.moments import read_preconditioner
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.matrices import curvature


class Chosen(Struct, frozen=True):
    """Which matrix, with what it is made from."""

    matrix: Matrix
    draws: int
    optimizer: str | None

    def operator(
        self, subject: Subject, journal: Journal, **options: Any
    ) -> tuple[Curvature[Any], PreconditionerInfo | None]:
        """The matrix as a linear map; ``options`` are those of `Curvature`.

        Raises:
            UsageError: an option is missing, or has no meaning for this matrix.
            CurvError: what is needed cannot be read, or does not exist for this loss.
        """
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
            journal.note(
                f"the Fisher matrix is that of {self.draws} drawn target(s) for each datum; others (--seed) or more "
                "(--draws) give another: `hessian` says by how much. For cross_entropy, mse and bce_with_logits ggn is "
                "its expectation"
            )
        diagonal_N, info = None, None
        if self.optimizer is not None:
            diagonal_N, info = _preconditioner(subject, journal, self.optimizer)
        operator = curvature(
            subject.objective,
            self.matrix,
            draws=self.draws,
            seed=subject.spec.seed,
            diagonal_N=diagonal_N,
            memory=subject.spec.memory_bytes,
            **options,
        )
        return operator, info


def _preconditioner(
    subject: Subject, journal: Journal, file: str
) -> tuple[Tensor, PreconditionerInfo]:

    objective = subject.objective
    shapes = {n: tuple(p.shape) for n, p in objective.model.named_parameters()}
    found = read_preconditioner(Path(file), shapes, unsafe_pickle=subject.spec.unsafe_pickle)
    missing = [n for n in found.missing if n in objective.names]
    if missing:
        journal.note(
            f"the optimizer has no state for {some(missing)}: no gradient reached them, v̂ = 0"
        )
    diagonal_N = objective.flatten([found.diagonal[n] for n in objective.names])
    return diagonal_N, PreconditionerInfo(
        found.algorithm, found.steps, found.learning_rate, found.stability_threshold
    )
