"""Eigenvalues that are known without a search: all of a matrix of few rows, and zeros where no sample reaches."""

from typing import Any

from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.gram import GramSpectrum, gram_spectrum


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
