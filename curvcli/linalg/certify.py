"""What a computed eigenpair is worth: its Rayleigh quotient and its true residual.

Shapes: ``N`` length of a vector, ``K`` pairs.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curvcli.linalg.lanczos import ROUNDING
from curvcli.linalg.operator import Float64Array


class Certificate(NamedTuple):
    """Some eigenvalue lies within ``residuals_K[i]`` of ``values_K[i]``."""

    values_K: Float64Array
    """Rayleigh quotients vᵀAv."""
    residuals_K: Float64Array
    """‖Av - θv‖ plus the rounding of the product."""
    rounding: float
    """Error of a product that moves θ: some eps ‖A‖, the asymmetry |uᵀAv - vᵀAu|, and what was measured."""


def certify(
    vectors_KN: Tensor, products_KN: Tensor, norm: float, measured: float = 0.0
) -> Certificate:
    """Rayleigh quotients and residuals of unit vectors whose products are known.

    For a symmetric A and a unit vector v, some eigenvalue lies within ‖Av - θv‖ of θ (Parlett, The
    Symmetric Eigenvalue Problem, theorem 4.5.1). In floating point A v carries an error; the part of it
    that moves θ is measured by how far vᵀ(Au) and uᵀ(Av) differ, and is at least some eps ‖A‖.

    Args:
        vectors_KN: unit vectors.
        products_KN: A times each.
        norm: ‖A‖, or a lower bound on it.
        measured: error of products that was measured otherwise, in a more exact arithmetic.
    """
    values_K = torch.linalg.vecdot(vectors_KN, products_KN)
    rests_K = torch.linalg.vector_norm(products_KN - values_K[:, None] * vectors_KN, dim=1)
    cross_KK = (vectors_KN @ products_KN.T).double().cpu().numpy()
    rounding = ROUNDING * torch.finfo(vectors_KN.dtype).eps * norm + measured
    if len(cross_KK) > 1:
        upper = (cross_KK - cross_KK.T)[np.triu_indices(len(cross_KK), 1)]
        rounding += float(np.sqrt(np.mean(upper**2)))
    return Certificate(
        values_K.double().cpu().numpy(), rests_K.double().cpu().numpy() + rounding, rounding
    )
