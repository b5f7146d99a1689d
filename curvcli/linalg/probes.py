"""Traces and Frobenius norms from products with random signs, the leading eigenvectors taken out first.

For orthonormal V and z of independent random signs, with P = I − V Vᵀ:
tr A = tr VᵀAV + E zᵀPAPz (Hutchinson 1990) and ‖A‖_F² = ‖AV‖_F² + E ‖APz‖².

Shapes: ``N`` length of a vector, ``K`` vectors, ``S`` probes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.linalg.quadrature import Estimate


def random_signs(n: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """A vector of independent signs, shape (n,), on the device of ``like`` in its dtype."""
    signs_N = 2.0 * torch.randint(0, 2, (n,), generator=generator) - 1
    return signs_N.to(like.device, like.dtype)


def without(vectors_KN: Tensor, z_N: Tensor) -> Tensor:
    """P z: ``z_N`` less its components along orthonormal vectors."""
    return z_N - vectors_KN.T @ (vectors_KN @ z_N)


class Sums(NamedTuple):
    """A quantity that is the sum of a known part and of a mean over probes."""

    known: float
    samples_S: Sequence[float]

    def estimate(self) -> Estimate | None:
        """The sum with its standard error; None without samples, an error of None with a single one."""
        s = len(self.samples_S)
        if s == 0:
            return None
        mean = sum(self.samples_S) / s
        if s == 1:
            return Estimate(self.known + mean, None)
        variance = sum((v - mean) ** 2 for v in self.samples_S) / (s - 1)
        return Estimate(self.known + mean, math.sqrt(variance / s))


def ratio(above: Sums, below: Sums) -> Estimate | None:
    """``above`` / ``below``, both from the same probes, with its error by the jackknife over them.

    Returns:
        None without probes, or where ``below`` is zero; an error of None with a single probe.
    """
    s = len(above.samples_S)
    if s == 0:
        return None

    def of(keep: Sequence[int]) -> float:
        a = above.known + sum(above.samples_S[i] for i in keep) / len(keep)
        b = below.known + sum(below.samples_S[i] for i in keep) / len(keep)
        return a / b if b > 0 else math.nan

    whole = of(range(s))
    if math.isnan(whole):
        return None
    if s == 1:
        return Estimate(whole, None)
    left = [of([j for j in range(s) if j != i]) for i in range(s)]
    mean = sum(left) / s
    return Estimate(whole, math.sqrt((s - 1) / s * sum((v - mean) ** 2 for v in left)))
