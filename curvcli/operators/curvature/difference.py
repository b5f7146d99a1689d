"""The difference of two curvature matrices as a linear map."""

from typing import Any

import torch
from torch import Tensor

from curvcli.operators.curvature.curvature import Curvature


class Difference:
    """A − B, for two matrices over the same parameters."""

    def __init__(self, first: Curvature[Any], second: Curvature[Any]) -> None:
        self.first, self.second = first, second
        self.n, self.dtype, self.device = first.n, first.dtype, first.device

    n: int
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v_N: Tensor) -> Tensor:
        """A v − B v."""
        return self.first.matvec(v_N).sub_(self.second.matvec(v_N))
