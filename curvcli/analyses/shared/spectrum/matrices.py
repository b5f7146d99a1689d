"""The curvature matrix that options choose, and what is known of it without a search."""

from pathlib import Path
from typing import Any

from msgspec import Struct
from torch import Tensor

from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.matrix_options import Matrix, PreconditionerInfo
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError, some
from curvcli.loading.checkpoints.moments import read_preconditioner
from curvcli.loading.checkpoints.training import read_training
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.gram import GramSpectrum, gram_spectrum
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
        if self.matrix == "fisher":
            journal.note(
                f"the Fisher matrix is that of {self.draws} drawn target(s) for each datum; others (--seed) or more "
                "(--draws) give another: `hessian` says by how much. For cross_entropy, mse and bce_with_logits ggn is "
                "its expectation"
            )
        diagonal_N, info = None, None
        if self.matrix == "preconditioned":
            diagonal_N, info = _preconditioner(subject, journal, self._file(subject, journal))
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

    def _file(self, subject: Subject, journal: Journal) -> str:
        """Where the second moments are: the file that was named, else the checkpoint itself."""
        if self.optimizer is not None:
            return self.optimizer
        own = subject.spec.checkpoint
        training = read_training(Path(own), subject.spec.unsafe_pickle) if own else None
        if own is None or training is None or training.optimizer is None:
            where = f"{Path(own).name} holds none" if own else "there is no checkpoint to hold them"
            raise UsageError(
                f"the preconditioned Hessian needs the optimizer's second moments, and {where}",
                "pass --optimizer with a file that holds the state of Adam",
            )
        journal.note(f"the optimizer's state is that in the checkpoint, {Path(own).name}")
        return own


def _preconditioner(
    subject: Subject, journal: Journal, file: str
) -> tuple[Tensor, PreconditionerInfo]:

    objective = subject.objective
    shapes = {n: tuple(p.shape) for n, p in objective.model.named_parameters()}

    def gradient() -> dict[str, Tensor]:
        return dict(zip(objective.names, objective.views(objective.gradient()), strict=True))

    found = read_preconditioner(
        Path(file), shapes, journal.notes,
        unsafe_pickle=subject.spec.unsafe_pickle, gradient=gradient,
    )  # fmt: skip
    missing = [n for n in found.missing if n in objective.names]
    if missing:
        journal.note(
            f"the optimizer does not move {some(missing)} (not given to it, or never with a gradient): left out of D⁻¹H"
        )
    rates = {found.rates[n] for n in objective.names}
    most = max(rates) or 1.0
    if len(rates) > 1:
        journal.note(
            "groups of parameters have learning rates of their own: the matrix is D^(-1/2) H D^(-1/2) without them, "
            "and the limit of stability that of the largest; 'curvcli track' counts each group by its rate"
        )
    diagonal_N = objective.flatten([found.diagonal[n] for n in objective.names])
    rate, limit = found.learning_rate, found.stability_threshold
    return diagonal_N, PreconditionerInfo(
        found.algorithm,
        found.steps,
        None if rate is None else rate * most,
        None if limit is None else limit / most,
    )


def exact_spectrum(journal: Journal, operator: Curvature[Any], rows: int) -> GramSpectrum | None:
    """The whole spectrum of a Gauss-Newton or Fisher matrix of at most ``rows`` rows, from their Gram matrix.

    Args:
        journal: told of it.
        operator: the matrix.
        rows: 0: never.

    Returns:
        None where there are more, or the matrix is none of these.
    """
    if rows == 0 or not isinstance(operator, GaussNewton):
        return None
    journal.progress(Stage("rows", 0, None))
    gram = gram_spectrum(operator, rows)
    if gram is not None:
        journal.note(
            f"the whole spectrum was computed from the Gram matrix of {len(gram.values_R)} rows"
        )
    return gram


def untouched_zeros(objective: Objective, at_most: int | None = None) -> list[float]:
    """The zero eigenvalues that belong to entries which no sample looks up, and which vectors leave out."""
    count = objective.untouched
    return [0.0] * (count if at_most is None else min(count, at_most))
