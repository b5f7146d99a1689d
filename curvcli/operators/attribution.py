"""Why a product and a finite difference of the gradient differ: a wrong backward, or kinks."""

import copy

import torch
from torch import Tensor

from curvcli.errors import CurvError
from curvcli.objective import Objective, move
from curvcli.operators.hessian import Hessian

# Samples differentiated in double precision.
_SAMPLES = 16
# The step relative to the one that changes the loss by 1: no kink lies within it.
_STEP = 1e-7


def error_in_double(objective: Objective, v_N: Tensor) -> float | None:
    """Relative difference of H v to finite differences, in float64, over a tiny step on a few samples.

    Kinks of the surface (ReLU) make both differ over any finite step that crosses one; a step of 1e-7
    crosses none, so that what is left is an error of a second derivative.

    Returns:
        None where this cannot be tried (the model cannot be copied, or runs only in its own dtype).
    """
    piece = next(iter(objective.batches[0].pieces(_SAMPLES)))
    try:
        twin = Objective(
            copy.deepcopy(objective.model).double(),
            [
                type(piece)(
                    move(piece.data, objective.device, torch.float64), piece.size, piece.splittable
                )
            ],
            objective.terms,
            select=objective.names,
            train_mode=objective.train_mode,
        )
        operator = Hessian(twin, strategy="rebuild")
        v64_N = v_N.double()
        exact_N = operator.matvec(v64_N)
        other_N = operator.difference_product(v64_N, _STEP)
    except (CurvError, RuntimeError, TypeError, NotImplementedError, AttributeError):
        return None
    scale = max(float(torch.linalg.vector_norm(p)) for p in (exact_N, other_N))
    return float(torch.linalg.vector_norm(exact_N - other_N)) / scale if scale else 0.0
