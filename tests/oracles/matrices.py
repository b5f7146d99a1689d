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


class Matrix:
    """A matrix that is given whole."""

    def __init__(self, a: Tensor) -> None:
        self.a, self.n, self.dtype, self.device = a, len(a), a.dtype, a.device

    def matvec(self, v_N: Tensor) -> Tensor:
        return self.a @ v_N


def spectrum(n: int = 160, seed: int = 1) -> np.ndarray:
    """Five outliers, a bulk on both sides of zero, many near zero: like that of a network."""
    rng = np.random.default_rng(seed)
    bulk = np.concatenate([rng.uniform(-0.5, 2, n // 3), np.exp(-8 * rng.random(n - 5 - n // 3))])
    return np.concatenate([[50.0, 20, 10, 8, -5], bulk])


def matrix_of(values: np.ndarray, seed: int = 2) -> Matrix:
    """The given eigenvalues in a random orthonormal eigenbasis."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return Matrix(q @ torch.diag(torch.from_numpy(values)) @ q.T)
