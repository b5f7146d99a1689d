"""Stochastic Lanczos quadrature: integrals of the spectral density from a few random vectors.

∫ f dφ ≈ n · mean over probes of Σ_k w_k f(θ_k), with the Ritz values θ_k and weights w_k = (first entries of the
eigenvectors of T)² (Golub & Welsch 1969; Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38, 2017).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from curvcli.linalg.basis import Basis
from curvcli.linalg.operator import Float64Array, SymmetricOperator, eigh, random_unit_vector


@dataclass(frozen=True)
class Nodes:
    """The Gauss rule of one probe: Σ weights = 1."""

    theta_M: Float64Array
    weights_M: Float64Array


@dataclass(frozen=True)
class Estimate:
    """A mean over probes with its standard error."""

    value: float
    standard_error: float | None
    """None with fewer than two probes."""


def gauss_rule(op: SymmetricOperator, steps: int, generator: torch.Generator) -> Nodes:
    """The Gauss rule of ``steps`` Lanczos steps from one random vector, fully reorthogonalised."""
    steps = min(steps, op.n)
    basis = Basis(op.n, steps, op.dtype, op.device)
    basis.append(random_unit_vector(op, generator))
    alphas: list[float] = []
    betas: list[float] = []
    for j in range(steps):
        w_N = op.matvec(basis[j])
        h_M, norm = basis.project_out(w_N)
        alphas.append(float(h_M[j]))
        beta = float(norm)
        scale = max(map(abs, (*alphas, *betas)))
        if j + 1 == steps or beta <= 10 * torch.finfo(op.dtype).eps * scale:
            break
        betas.append(beta)
        basis.append(w_N.div_(beta))
    theta_M, s_MM = eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
    return Nodes(theta_M, s_MM[0] ** 2)


def integrate(
    rules: list[Nodes], function: Callable[[Float64Array], Float64Array], n: int
) -> Estimate:
    """n ∫ f dφ, the sum of f over the eigenvalues, from several probes."""
    values = [n * float(rule.weights_M @ function(rule.theta_M)) for rule in rules]
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance / len(values)))
