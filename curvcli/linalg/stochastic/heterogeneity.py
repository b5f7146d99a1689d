"""How different the spectra of several matrices are: Jensen-Shannon distances between their densities.

The density of each matrix, φ(t) = (1/n) Σ_i g_σ(t − λ_i) with a Gaussian g_σ, is estimated by stochastic Lanczos
quadrature; the blocks of a transformer's Hessian differ much more than those of a convolutional network (Zhang et
al., "Why Transformers need Adam: a Hessian perspective", arXiv 2402.16788, 2024).

Shapes: ``L`` matrices, ``P`` probes, ``M`` nodes, ``T`` points of the grid.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curvcli.linalg.operator import Float64Array, eigh
from curvcli.linalg.stochastic.quadrature import Estimate, Nodes

# σ as a share of the largest |λ| of all matrices: what two dozen Lanczos steps resolve.
RESOLUTION = 0.03
# Points of the grid within σ, and multiples of σ that it goes on beyond the outermost nodes.
_POINTS, _MARGIN = 4, 4


class Densities(NamedTuple):
    """Smoothed spectral densities on a common grid."""

    grid_T: Float64Array
    sigma: float
    probes_PLT: Float64Array
    """One estimate from each probe; they integrate to 1."""

    @property
    def mean_LT(self) -> Float64Array:
        """The estimates."""
        mean_LT: Float64Array = self.probes_PLT.mean(0)
        return mean_LT

    @property
    def errors_LT(self) -> Float64Array | None:
        """Their standard errors; None with fewer than two probes."""
        p = len(self.probes_PLT)
        return self.probes_PLT.std(0, ddof=1) / math.sqrt(p) if p > 1 else None


class Heterogeneity(NamedTuple):
    """Jensen-Shannon distances between the densities of all pairs, in [0, 1]."""

    mean: Estimate
    largest: Estimate
    pair: tuple[int, int]
    """Of the largest distance."""


def rule_of(alphas: Sequence[float], betas: Sequence[float]) -> Nodes:
    """The Gauss rule of a Lanczos run from a random vector: diagonal and off-diagonal of its matrix."""
    beta = np.asarray(betas[: len(alphas) - 1])
    theta_M, s_MM = eigh(np.diag(alphas) + np.diag(beta, 1) + np.diag(beta, -1))
    return Nodes(theta_M, s_MM[0] ** 2)


def with_zeros(rule: Nodes, share: float) -> Nodes:
    """The rule of a matrix of which a ``share`` of rows and columns, exactly zero, were left out."""
    if share == 0:
        return rule
    return Nodes(np.append(rule.theta_M, 0.0), np.append(rule.weights_M * (1 - share), share))


def densities(rules: Sequence[Sequence[Nodes]]) -> Densities:
    """Densities from the rules of several matrices, ``rules[l][p]``, with the same number of probes for each."""
    nodes = np.concatenate([rule.theta_M for of_one in rules for rule in of_one])
    sigma = RESOLUTION * float(np.abs(nodes).max()) or 1.0
    low, high = nodes.min() - _MARGIN * sigma, nodes.max() + _MARGIN * sigma
    grid_T = np.linspace(low, high, 1 + math.ceil((high - low) * _POINTS / sigma))
    probes_PLT = np.array(
        [[_smoothed(of_one[p], grid_T, sigma) for of_one in rules] for p in range(len(rules[0]))]
    )
    return Densities(grid_T, sigma, probes_PLT)


def _smoothed(rule: Nodes, grid_T: Float64Array, sigma: float) -> Float64Array:
    bells_TM = np.exp(-0.5 * ((grid_T[:, None] - rule.theta_M) / sigma) ** 2)
    density_T: Float64Array = bells_TM @ rule.weights_M
    density_T /= density_T.sum() * (grid_T[1] - grid_T[0])
    return density_T


def js_distance(p_T: Float64Array, q_T: Float64Array) -> float:
    """√(½ KL(p‖m) + ½ KL(q‖m)) with m = (p + q)/2 and logarithms to base 2: a metric, from 0 to 1.

    Lin, IEEE Trans. Inf. Theory 37 (1991); Endres & Schindelin, ibid. 49 (2003).

    Args:
        p_T: a density on an even grid, of any positive total.
        q_T: another one.
    """
    p_T, q_T = p_T / p_T.sum(), q_T / q_T.sum()
    middle_T = 0.5 * (p_T + q_T)
    total = 0.0
    for one_T in (p_T, q_T):
        held = one_T > 0
        total += 0.5 * float(one_T[held] @ np.log2(one_T[held] / middle_T[held]))
    return math.sqrt(max(0.0, total))


def heterogeneity(found: Densities) -> Heterogeneity | None:
    """Mean and largest distance over all pairs, with their errors by the jackknife over the probes.

    Noise of the probes makes densities look more different than they are: the jackknife's estimate of that bias is
    subtracted, and is part of the error.

    Returns:
        None for a single matrix.
    """
    p, count, _ = found.probes_PLT.shape
    if count < 2:
        return None
    whole = _distances(found.mean_LT)
    mean, largest = float(whole.mean()), float(whole.max())
    pairs = list(zip(*np.triu_indices(count, 1), strict=True))
    first, second = pairs[int(whole.argmax())]
    chosen = (int(first), int(second))
    if p < 2:
        return Heterogeneity(Estimate(mean, None), Estimate(largest, None), chosen)
    left = [_distances(np.delete(found.probes_PLT, i, 0).mean(0)) for i in range(p)]
    return Heterogeneity(
        _jackknife(mean, [float(d.mean()) for d in left]),
        _jackknife(largest, [float(d[whole.argmax()]) for d in left]),
        chosen,
    )


def _distances(mean_LT: Float64Array) -> Float64Array:
    """Of all pairs, in the order of `np.triu_indices`."""
    return np.array(
        [
            js_distance(mean_LT[i], mean_LT[j])
            for i, j in zip(*np.triu_indices(len(mean_LT), 1), strict=True)
        ]
    )


def _jackknife(whole: float, left: Sequence[float]) -> Estimate:
    p = len(left)
    mean = sum(left) / p
    bias = (p - 1) * (mean - whole)
    variance = (p - 1) / p * sum((v - mean) ** 2 for v in left)
    return Estimate(max(0.0, whole - bias), math.sqrt(variance + bias**2))
