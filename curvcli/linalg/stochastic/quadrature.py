"""Stochastic Lanczos quadrature: integrals of the spectral density from a few random vectors.

∫ f dφ ≈ mean over probes of Σ_k w_k f(θ_k), with the Ritz values θ_k and weights w_k = (first entries of the
eigenvectors of T)² (Golub & Welsch 1969; Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38, 2017).

Shapes: ``N`` length of a vector, ``M`` nodes, ``K`` vectors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curvcli.linalg.basis import Basis
from curvcli.linalg.lanczos.lanczos import Status
from curvcli.linalg.operator import (
    Float64Array,
    SymmetricOperator,
    eigh,
    holders_of,
    offload_of,
    random_unit_vector,
)


@dataclass(frozen=True)
class Nodes:
    """The Gauss rule of one probe: Σ weights = 1."""

    theta_M: Float64Array
    weights_M: Float64Array

    def tensor(self) -> Tensor:
        """Both as rows, shape (2, M)."""
        return torch.from_numpy(np.stack([self.theta_M, self.weights_M]))


@dataclass(frozen=True)
class Estimate:
    """A mean over probes with its standard error."""

    value: float
    standard_error: float | None
    """None with fewer than two probes."""


@dataclass(frozen=True)
class Rules:
    """The Gauss rules of one vector after all steps, and after half of them."""

    nodes: Nodes
    half: Nodes
    start_N: Tensor
    """q, the unit vector started from,"""
    first_N: Tensor
    """and A q."""
    matvecs: int


class Stopped(Exception):
    """A rule that was asked to end before all of its steps.

    Args:
        reason: why.
        rules: of the steps until then.
    """

    def __init__(self, reason: Status, rules: Rules) -> None:
        super().__init__(reason)
        self.reason, self.rules = reason, rules


def gauss_rule(
    op: SymmetricOperator,
    steps: int,
    generator: torch.Generator,
    stop: Callable[[], Status | None] = lambda: None,
) -> Nodes:
    """The Gauss rule of ``steps`` Lanczos steps from one random vector, fully reorthogonalised.

    As many steps as dimensions find every eigenvalue:

    >>> from types import SimpleNamespace
    >>> a = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> op = SimpleNamespace(n=2, dtype=a.dtype, device=a.device, matvec=lambda v: a @ v)
    >>> rule = gauss_rule(op, 2, torch.Generator().manual_seed(0))
    >>> rule.theta_M.tolist(), rule.weights_M.sum().item()
    ([1.000000, 3.000000], 1.000000)
    """
    return gauss_rules(op, random_unit_vector(op, generator), steps, stop).nodes


def gauss_rules(
    op: SymmetricOperator,
    q_N: Tensor,
    steps: int,
    stop: Callable[[], Status | None] = lambda: None,
) -> Rules:
    """The Gauss rules of qᵀ f(A) q from ``steps`` Lanczos steps, fully reorthogonalised.

    Args:
        op: A.
        q_N: a unit vector.
        steps: products at most; fewer where the Krylov space ends.
        stop: asked before each product but the first; a reason ends the run.

    Raises:
        Stopped: there was a reason.
    """
    steps = min(steps, op.n)
    basis = Basis(op.n, steps, op.dtype, op.device, holders_of(op), offload_of(op))
    basis.append(q_N)
    alphas: list[float] = []
    betas: list[float] = []
    first_N, reason = q_N, None
    for j in range(steps):
        if j and (reason := stop()) is not None:
            break
        w_N = op.matvec(basis[j])
        if j == 0:
            first_N = w_N.clone()
        removed_M, beta, _ = basis.project_out(w_N, twice=True)
        alphas.append(float(removed_M[j]))
        scale = max(map(abs, (*alphas, *betas)))
        if j + 1 == steps or beta <= 10 * torch.finfo(op.dtype).eps * scale:
            break
        betas.append(beta)
        basis.append(w_N.div_(beta))
    betas = betas[: len(alphas) - 1]
    middle = (len(alphas) + 1) // 2
    rules = Rules(
        _rule(alphas, betas),
        _rule(alphas[:middle], betas[: middle - 1]),
        q_N,
        first_N,
        len(alphas),
    )
    if reason is not None:
        raise Stopped(reason, rules)
    return rules


def _rule(alphas: list[float], betas: list[float]) -> Nodes:
    theta_M, s_MM = eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
    return Nodes(theta_M, s_MM[0] ** 2)


def random_complement(
    op: SymmetricOperator, vectors_KN: Tensor, generator: torch.Generator
) -> Tensor:
    """A unit vector, uniform on the sphere of the complement of orthonormal vectors."""
    z_N, ranks = random_unit_vector(op, generator), holders_of(op)
    for _ in range(2):  # the second pass is needed where few dimensions are left
        z_N = z_N - vectors_KN.T @ ranks.over_entries(vectors_KN @ z_N)
        z_N = z_N / ranks.norm(z_N)
    return z_N


def integrate(
    rules: list[Nodes], function: Callable[[Float64Array], Float64Array], n: int
) -> Estimate:
    """n ∫ f dφ, the sum of f over the eigenvalues, from several probes."""
    return mean_of([n * float(rule.weights_M @ function(rule.theta_M)) for rule in rules])


def mean_of(values: list[float]) -> Estimate:
    """The mean of independent values with its standard error."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance / len(values)))
