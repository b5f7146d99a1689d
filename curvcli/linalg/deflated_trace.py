"""The trace of a matrix whose leading eigenvectors are known: exact on their span, stochastic on the rest."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.linalg.operator import SymmetricOperator


class TraceEstimate(NamedTuple):
    """tr A."""

    value: float
    standard_error: float | None
    """None with fewer than two probes."""


def deflated_trace(
    op: SymmetricOperator,
    vectors_KN: Tensor,
    values_K: list[float],
    probes: int,
    generator: torch.Generator,
    stop: Callable[[], object] = lambda: None,
) -> TraceEstimate | None:
    """tr A = Σ v_iᵀ A v_i + E zᵀ P A P z, with P = I − Σ v_i v_iᵀ and z of random signs (Hutchinson 1990).

    The identity holds for any orthonormal v_i; leading eigenvectors take most of the variance away.

    Args:
        op: A.
        vectors_KN: orthonormal vectors v_i.
        values_K: v_iᵀ A v_i.
        probes: vectors z, one product each.
        generator: of their signs.
        stop: asked before each product.

    Returns:
        None where no product was made.
    """
    samples: list[float] = []
    for _ in range(probes):
        if stop() is not None:
            break
        z_N = 2.0 * torch.randint(0, 2, (op.n,), generator=generator).to(torch.float64) - 1
        z_N = z_N.to(device=op.device, dtype=op.dtype)
        z_N = z_N - vectors_KN.T @ (vectors_KN @ z_N)
        samples.append(float(torch.dot(z_N, op.matvec(z_N))))
    if not samples:
        return None
    mean = sum(samples) / len(samples)
    error = None
    if len(samples) > 1:
        variance = sum((s - mean) ** 2 for s in samples) / (len(samples) - 1)
        error = (variance / len(samples)) ** 0.5
    return TraceEstimate(sum(values_K) + mean, error)
