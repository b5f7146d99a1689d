"""Traces and Frobenius norms from products with random signs, the leading eigenvectors taken out first.

For orthonormal V and z of independent random signs, with P = I − V Vᵀ:
tr A = tr VᵀAV + E zᵀPAPz (Hutchinson 1990) and ‖A‖_F² = ‖AV‖_F² + E ‖APz‖².

Shapes: ``N`` length of a vector, ``K`` vectors, ``S`` probes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.linalg.operator import SymmetricOperator, ranks_of
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.stochastic.quadrature import Estimate


def random_signs(
    n: int, generator: torch.Generator, like: Tensor, own: slice = slice(None)
) -> Tensor:
    """A vector of independent signs, shape (n,), on the device of ``like`` in its dtype; of it the entries ``own``."""
    # Bytes are drawn and moved in a fraction of the time that numbers of 64 bits take.
    bits_N = torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8)[own]
    return bits_N.to(like.device).to(like.dtype).mul_(2).sub_(1)


def without(vectors_KN: Tensor, z_N: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """P z: ``z_N`` less its components along orthonormal vectors, which ``ranks`` hold together."""
    return z_N - vectors_KN.T @ ranks.over_entries(vectors_KN @ z_N)


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


def deflated_trace(
    op: SymmetricOperator,
    vectors_KN: Tensor,
    values_K: Sequence[float],
    probes: int,
    generator: torch.Generator,
    stop: Callable[[], object] = lambda: None,
) -> Estimate | None:
    """tr A = Σ v_iᵀ A v_i + E zᵀ P A P z.

    Args:
        op: A.
        vectors_KN: orthonormal vectors v_i; leading eigenvectors take most of the variance away.
        values_K: v_iᵀ A v_i.
        probes: vectors z, one product each.
        generator: of their signs.
        stop: asked before each product.

    Returns:
        None where no product was made.
    """
    samples: list[float] = []
    ranks = ranks_of(op)
    own = ranks.entries(op.n)
    for _ in range(probes):
        if stop() is not None:
            break
        z_N = without(vectors_KN, random_signs(op.n, generator, vectors_KN, own), ranks)
        samples.append(float(ranks.dot(z_N, op.matvec(z_N))))
    return Sums(sum(values_K), samples).estimate()


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
    return Estimate(whole, jackknife(of, s))


def jackknife(of: Callable[[Sequence[int]], float], s: int) -> float | None:
    """Standard error of a function of ``s`` samples, given by their indices (Tukey 1958); None for a single one."""
    if s < 2:
        return None
    left = [of([j for j in range(s) if j != i]) for i in range(s)]
    mean = sum(left) / s
    return math.sqrt((s - 1) / s * sum((v - mean) ** 2 for v in left))
