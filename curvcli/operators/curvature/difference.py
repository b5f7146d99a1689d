"""The difference of two curvature matrices as a linear map."""

from typing import Any

import torch
from torch import Tensor

from curvcli.operators.curvature.curvature import Curvature


class Difference:
    """A − B, for two matrices over the same parameters.

    The Hessian without its Gauss-Newton part is the curvature of the network itself. For the loss (w₂ w₁)² at
    w = (1, 3) it has no diagonal, and 2 w₁ w₂ beside it:

    >>> from curvcli.loading.loss import loss_terms
    >>> from curvcli.objective.batch import Batch
    >>> from curvcli.objective.checks import make_objective
    >>> from curvcli.operators.curvature.gauss_newton import GaussNewton
    >>> from curvcli.operators.curvature.hessian import Hessian
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    >>> for weight, value in zip(model.parameters(), (1.0, 3.0)):
    ...     _ = weight.data.fill_(value)
    >>> batch = Batch(((torch.ones(1, 1),), {}, torch.zeros(1, 1)), 1)
    >>> objective = make_objective(model, [batch], loss_terms("mse", {}))
    >>> op = Difference(Hessian(objective), GaussNewton(objective))
    >>> op.matvec(torch.tensor([1.0, 0.0])).tolist()
    [0.0000, 6.0000]
    """

    def __init__(self, first: Curvature[Any], second: Curvature[Any]) -> None:
        self.first, self.second = first, second
        self.n, self.dtype, self.device = first.n, first.dtype, first.device
        self.ranks, self.offload = first.ranks, first.offload

    n: int
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v_N: Tensor) -> Tensor:
        """A v − B v."""
        return self.first.matvec(v_N).sub_(self.second.matvec(v_N))
