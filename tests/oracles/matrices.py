"""Symmetric matrices that are known: of a prescribed spectrum, or given whole."""

import numpy as np
import torch
from torch import Tensor


class Prescribed:
    """A symmetric matrix with the given eigenvalues, in a random orthonormal eigenbasis if it is small."""

    def __init__(
        self,
        eigenvalues: list[float] | np.ndarray,
        dtype: torch.dtype = torch.float64,
        rotate: bool = False,
    ) -> None:
        self.eigenvalues = np.sort(np.asarray(eigenvalues, dtype=float))
        self.n, self.dtype, self.device = len(self.eigenvalues), dtype, torch.device("cpu")
        diagonal = torch.from_numpy(self.eigenvalues)
        self.matrix: Tensor | None = None
        if rotate:
            generator = torch.Generator().manual_seed(1)
            q, _ = torch.linalg.qr(
                torch.randn(self.n, self.n, generator=generator, dtype=torch.float64)
            )
            self.matrix = ((q * diagonal) @ q.T).to(dtype)
        self.diagonal = diagonal.to(dtype)
        self.products = 0

    def matvec(self, v_N: Tensor) -> Tensor:
        self.products += 1
        return self.matrix @ v_N if self.matrix is not None else self.diagonal * v_N


OUTLIERS = np.concatenate(
    [
        np.random.default_rng(0).normal(size=2000) * 0.01,
        [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, -0.5, -0.3, -0.2],
    ]
)
