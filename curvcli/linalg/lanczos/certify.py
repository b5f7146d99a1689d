"""What computed eigenpairs are worth: Rayleigh quotients and residuals.

Shapes: ``N`` length of a vector, ``K`` pairs.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curvcli.linalg.lanczos.lanczos import LanczosResult
from curvcli.linalg.operator import ROUNDING, Float64Array, SymmetricOperator
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.stochastic.probes import random_signs


class Certificate(NamedTuple):
    """Some eigenvalue lies within ``residuals_K[i]`` of ``values_K[i]``."""

    values_K: Float64Array
    """Rayleigh quotients vᵀAv."""
    residuals_K: Float64Array
    """‖Av - θv‖ plus the rounding of the product."""
    rounding: float
    """Error of a product that moves θ: some eps ‖A‖, the asymmetry |uᵀAv - vᵀAu|, and what was measured."""


def certify(
    vectors_KN: Tensor,
    products_KN: Tensor,
    norm: float,
    measured: float = 0.0,
    ranks: Ranks = ALONE,
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
        ranks: the processes that hold the vectors.
    """
    values_K = ranks.over_entries(torch.linalg.vecdot(vectors_KN, products_KN))
    rests_K = ranks.norms(products_KN - values_K[:, None] * vectors_KN)
    cross_KK = ranks.inner(vectors_KN, products_KN).cpu().double().numpy()
    rounding = ROUNDING * torch.finfo(vectors_KN.dtype).eps * norm + measured
    if len(cross_KK) > 1:
        upper = (cross_KK - cross_KK.T)[np.triu_indices(len(cross_KK), 1)]
        rounding += float(np.sqrt(np.mean(upper**2)))
    return Certificate(
        values_K.cpu().double().numpy(), rests_K.cpu().double().numpy() + rounding, rounding
    )


class Probe(NamedTuple):
    """One product that holds the recurrence of all pairs against the operator."""

    vector_N: Tensor
    """w = Σ ± v_i / √K."""
    product_N: Tensor
    """A w."""
    excess_N: Tensor
    """A w minus what the recurrence says it is."""


def probe(op: SymmetricOperator, found: LanczosResult, seed: int = 0) -> Probe:
    """A product with a random combination of the Ritz vectors of ``found``.

    The recurrence gives A v_i = θ_i v_i + r_i with a known r_i. Whatever else an A v_i contains, from rounding to an
    operator that is not the same linear map in every product, shows in A w - Σ ± (θ_i v_i + r_i) / √K: with random
    signs K times its mean square is the sum of the squares of what the single pairs hide.
    """
    signs_K = combinations(found.vectors_KN, seed)[0]
    vector_N = signs_K @ found.vectors_KN
    product_N = op.matvec(vector_N)
    excess_N = product_N - recurred(found, signs_K)
    return Probe(vector_N, product_N, excess_N)


def combinations(vectors_KN: Tensor, seed: int = 0) -> Tensor:
    """Two draws of random signs over √K, orthogonal for even K: weights of unit vectors that hold all alike, (2, K)."""
    k = len(vectors_KN)
    generator = torch.Generator().manual_seed(seed)
    first_K = random_signs(k, generator, vectors_KN) / k**0.5
    alternating_K = 1 - 2 * (torch.arange(k, device=vectors_KN.device) % 2)
    weights_RK: Tensor = torch.stack([first_K, first_K * alternating_K])
    return weights_RK


def recurred(found: LanczosResult, weights_K: Tensor) -> Tensor:
    """A times this combination of the Ritz vectors, as the recurrence has it: Σ w_i (θ_i v_i + r_i)."""
    values_K = torch.from_numpy(found.values_K).to(weights_K)
    product_N: Tensor = (weights_K * values_K) @ found.vectors_KN
    for direction_N, components_K in found.tails:
        share = float(components_K @ weights_K.cpu().double().numpy())
        product_N = product_N.add(direction_N, alpha=share)
    return product_N


def certify_by_recurrence(
    found: LanczosResult, probed: Probe, measured: float = 0.0, ranks: Ranks = ALONE
) -> Certificate:
    """Residuals of the Lanczos recurrence, widened by what one product shows beyond it.

    ‖A v_i - θ_i v_i‖ ≤ ‖r_i‖ + √K ‖excess‖ as far as a random combination tells (see `probe`), plus rounding.

    Args:
        found: the pairs.
        probed: by `probe`.
        measured: error of products that was measured otherwise, in a more exact arithmetic.
        ranks: the processes that hold the vectors.
    """
    root = len(found.vectors_KN) ** 0.5
    eps = torch.finfo(found.vectors_KN.dtype).eps
    crossed = float(ranks.over_entries(found.vectors_KN @ probed.excess_N).abs().max())
    rounding = ROUNDING * eps * found.norm + measured + root * crossed
    excess = root * float(ranks.norm(probed.excess_N))
    return Certificate(found.values_K.copy(), found.bounds_K + excess + rounding, rounding)
