"""The curvature matrices that can be asked for by name."""

from typing import Any

from torch import Tensor

from curvcli.errors import UsageError
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.fisher import EmpiricalFisher, Fisher
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.preconditioned import PreconditionedHessian


def curvature(
    objective: Objective,
    matrix: str,
    *,
    draws: int = 1,
    seed: int = 0,
    diagonal_N: Tensor | None = None,
    **options: Any,
) -> Curvature[Any]:
    """The matrix of that name as a linear map.

    Args:
        objective: L.
        matrix: hessian, ggn, fisher, empirical-fisher or preconditioned.
        draws: targets drawn for each datum of the Fisher matrix.
        seed: of the draws.
        diagonal_N: of the preconditioner D.
        options: see `Curvature`.

    Raises:
        UsageError: there is no such matrix.
        LossError: it does not exist for this objective.
    """
    if matrix == "hessian":
        return Hessian(objective, **options)
    if matrix == "ggn":
        return GaussNewton(objective, **options)
    if matrix == "fisher":
        return Fisher(objective, draws=draws, seed=seed, **options)
    if matrix == "empirical-fisher":
        return EmpiricalFisher(objective, **options)
    if matrix == "preconditioned" and diagonal_N is not None:
        return PreconditionedHessian(objective, diagonal_N=diagonal_N, **options)
    raise UsageError(
        f"there is no matrix {matrix!r}, or what it needs is missing",
        "hessian, ggn, fisher, empirical-fisher; preconditioned with the diagonal of D",
    )
