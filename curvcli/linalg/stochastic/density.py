"""The spectral density φ of a symmetric matrix: a measure of mass 1, as a sum of known points and of Gauss rules.

Outliers that are known exactly are points of mass 1/n; the rest is the mean of the Gauss rules of random unit vectors
on the complement of their eigenvectors (Lin, Saad & Yang, SIAM Review 58, 2016; Ghorbani, Krishnan & Xiao, ICML 2019).
Probes are compared by the Wasserstein distance, in which the rules converge (Chen, Trogdon & Ubaru, ICML 2021).

Shapes: ``P`` probes, ``M`` nodes, ``G`` points of a grid, ``K`` known eigenvalues.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from curvcli.linalg.operator import Float64Array
from curvcli.linalg.stochastic.quadrature import Nodes


class Mass(NamedTuple):
    """A share of all eigenvalues."""

    value: float
    standard_error: float
    """Over the probes."""
    low: float
    """Whatever the measures with these moments, the mean over the probes is no smaller,"""
    high: float
    """and no larger."""


class Curve(NamedTuple):
    """A density on a grid."""

    grid_G: Float64Array
    density_G: Float64Array
    standard_error_G: Float64Array


@dataclass(frozen=True)
class Density:
    """φ = (Σ_k δ(known_k) + (n − K) mean of the rules) / n."""

    n: int
    known_K: Float64Array
    rules: list[Nodes]

    @property
    def share(self) -> float:
        """Mass of the part that the rules stand for."""
        return (self.n - len(self.known_K)) / self.n if self.rules else 0.0

    @property
    def degrees(self) -> int:
        """Degrees of freedom of standard errors."""
        return max(0, len(self.rules) - 1)

    def spread(self) -> float:
        """Error of the mean of the rules: mean Wasserstein distance of one from all, over √(P − 1)."""
        p = len(self.rules)
        if p < 2:
            return math.nan if p else 0.0
        mean = Nodes(
            np.concatenate([r.theta_M for r in self.rules]),
            np.concatenate([r.weights_M for r in self.rules]) / p,
        )
        return float(np.mean([wasserstein(r, mean) for r in self.rules])) / math.sqrt(p - 1)

    def scale(self) -> float:
        """∫ |λ| of the mean of the rules."""
        if not self.rules:
            return 0.0
        return float(np.mean([r.weights_M @ np.abs(r.theta_M) for r in self.rules]))

    def moment(self, order: int) -> tuple[float, float]:
        """Σ λ^order / n and its standard error; exact for rules of more than order / 2 nodes.

        A few probes that miss a leading eigenvector agree with each other and are wrong: the error is that of their
        spread, or of the variance that the Ritz values themselves give it, whichever is larger.
        """
        samples = [self.share * float(r.weights_M @ r.theta_M**order) for r in self.rules]
        value, error = _with_error(float((self.known_K**order).sum()) / self.n, samples)
        return value, max(error, self._expected_error(order)) if samples else error

    def _expected_error(self, order: int) -> float:
        """Of the mean over the probes: Var qᵀAq = 2 (tr A² − (tr A)²/d) / (d (d + 2)) for q on a sphere in ℝᵈ.

        tr A² with A = H^order is that of the rules, or of the Ritz values as eigenvalues, whichever is larger.
        """
        d = self.n - len(self.known_K)
        if d < 2:
            return 0.0
        powers = [r.theta_M ** (2 * order) for r in self.rules]
        sampled = d * float(
            np.mean([r.weights_M @ p for r, p in zip(self.rules, powers, strict=True)])
        )
        seen = float(np.mean([p.sum() for p in powers]))
        trace = d * float(np.mean([r.weights_M @ r.theta_M**order for r in self.rules]))
        variance = 2 * max(0.0, max(sampled, seen) - trace**2 / d) / (d * (d + 2))
        return self.share * math.sqrt(variance / len(self.rules))

    def below(self, x: float) -> Mass:
        """The share of eigenvalues below x."""
        return self._mass(-math.inf, x)

    def within(self, x: float) -> Mass:
        """The share of eigenvalues with |λ| ≤ x."""
        return self._mass(-x, x)

    def curve(self, low: float, high: float, points: int) -> Curve:
        """Density of the rules' part over a linear grid, as mass per unit of λ.

        The mass of each node is spread over a triangle between its neighbours, so that none leaves the spectrum.
        """
        edges = np.linspace(low, high, points + 1)
        return self._smoothed(edges, [(r.theta_M, r.weights_M) for r in self.rules])

    def log_curve(self, low: float, high: float, points: int, sign: int) -> Curve:
        """Density of the rules' part with this sign over log10 |λ|, as mass per decade."""
        edges = np.linspace(math.log10(low), math.log10(high), points + 1)
        nodes = []
        for r in self.rules:
            chosen = sign * r.theta_M > low / 10
            order = np.argsort(np.abs(r.theta_M[chosen]))
            nodes.append((np.log10(np.abs(r.theta_M[chosen]))[order], r.weights_M[chosen][order]))
        curve = self._smoothed(edges, nodes)
        return Curve(10**curve.grid_G, curve.density_G, curve.standard_error_G)

    def kernel_width(self) -> float:
        """Median distance of neighbouring nodes."""
        widths = [_gaps(r.theta_M, 0.0)[1] for r in self.rules]
        return float(np.median(np.concatenate(widths))) if widths else 0.0

    def _smoothed(
        self, edges: Float64Array, nodes: list[tuple[Float64Array, Float64Array]]
    ) -> Curve:
        cell = edges[1] - edges[0]
        centres = (edges[1:] + edges[:-1]) / 2
        curves = np.zeros((max(1, len(nodes)), len(centres)))
        for curve, (theta_M, weights_M) in zip(curves, nodes, strict=False):
            if len(theta_M):
                # Mass in each cell, so that none is lost between the points of the grid.
                steps = _triangle(edges[:, None] - theta_M, *_gaps(theta_M, cell)) @ weights_M
                curve[:] = self.share * np.diff(steps) / cell
        error = np.zeros_like(centres)
        if len(nodes) > 1:
            error = curves.std(axis=0, ddof=1) / math.sqrt(len(nodes))
        return Curve(centres, curves.mean(axis=0), error)

    def _mass(self, low: float, high: float) -> Mass:
        closed = math.isfinite(low)

        def inside(x: Float64Array) -> Float64Array:
            # Both ends belong to an interval around zero, the upper one not to a half line.
            found: Float64Array = ((x >= low) & ((x <= high) if closed else (x < high))).astype(
                float
            )
            return found

        fixed = float(inside(self.known_K).sum()) / self.n
        samples = [self.share * float(r.weights_M @ inside(r.theta_M)) for r in self.rules]
        value, error = _with_error(fixed, samples)
        bounds = []
        for r in self.rules:
            top, bottom = cumulative_bounds(r, high), cumulative_bounds(r, low)
            bounds.append((max(0.0, top[0] - bottom[1]), min(1.0, top[1] - bottom[0])))
        if not bounds:
            return Mass(value, error, value, value)
        least, most = np.mean(bounds, axis=0).tolist()
        return Mass(value, error, fixed + self.share * least, fixed + self.share * most)


def cumulative_bounds(rule: Nodes, x: float) -> tuple[float, float]:
    """Bounds on F(x) of every measure that has this Gauss rule (Chebyshev, Markov & Stieltjes; Szegő, 3.41)."""
    if math.isinf(x):
        return (0.0, 0.0) if x < 0 else (1.0, 1.0)
    total = np.concatenate([[0.0], np.cumsum(rule.weights_M)])
    below = int(np.searchsorted(rule.theta_M, x))
    # Between two nodes F is between the sums short of the lower and up to the upper one.
    return float(total[max(0, below - 1)]), float(total[min(len(rule.theta_M), below + 1)])


def wasserstein(first: Nodes, second: Nodes) -> float:
    """W₁ of two measures of mass 1 on the line: ∫ |F − G|."""
    theta = np.concatenate([first.theta_M, second.theta_M])
    weights = np.concatenate([first.weights_M, -second.weights_M])
    order = np.argsort(theta)
    difference = np.cumsum(weights[order])[:-1]
    return float(np.abs(difference) @ np.diff(theta[order]))


def _gaps(theta_M: Float64Array, least: float) -> tuple[Float64Array, Float64Array]:
    """Distances of each node from the one before and the one after; at the ends as on the other side."""
    if len(theta_M) < 2:
        gap = np.full(len(theta_M), max(least, np.finfo(float).tiny))
        return gap, gap
    gaps = np.maximum(np.diff(theta_M), max(least, np.finfo(float).tiny))
    return np.concatenate([gaps[:1], gaps]), np.concatenate([gaps, gaps[-1:]])


def _triangle(x: Float64Array, left: Float64Array, right: Float64Array) -> Float64Array:
    """Distribution function of a triangle from −left to right with its peak at zero."""
    width = left + right
    rising = np.square(np.clip(x + left, 0.0, left)) / (width * left)
    falling = np.square(np.clip(right - x, 0.0, right)) / (width * right)
    found: Float64Array = np.where(x < 0, rising, 1 - falling)
    return found


def _with_error(fixed: float, samples: list[float]) -> tuple[float, float]:
    if not samples:
        return fixed, 0.0
    if len(samples) < 2:
        return fixed + samples[0], math.nan
    return fixed + float(np.mean(samples)), float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
