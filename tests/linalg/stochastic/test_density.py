"""Distances, bounds, masses and curves of a spectral density are those of the measure behind it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli.linalg.operator import Deflated
from curvcli.linalg.statistics.student import quantile
from curvcli.linalg.stochastic.density import Density, cumulative_bounds, wasserstein
from curvcli.linalg.stochastic.quadrature import Nodes, gauss_rules, random_complement
from tests.oracles.matrices import Matrix, matrix_of, spectrum


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_wasserstein_is_that_of_the_quantiles(a: int, b: int, seed: int) -> None:
    """∫ |F⁻¹ − G⁻¹| over a fine grid of probabilities."""
    rng = np.random.default_rng(seed)
    first = Nodes(np.sort(rng.normal(size=a)), rng.dirichlet(np.ones(a)))
    second = Nodes(np.sort(rng.normal(size=b)), rng.dirichlet(np.ones(b)))
    levels = (np.arange(20_000) + 0.5) / 20_000
    quantiles = [
        r.theta_M[np.minimum(np.searchsorted(np.cumsum(r.weights_M), levels), len(r.theta_M) - 1)]
        for r in (first, second)
    ]
    expected = np.abs(quantiles[0] - quantiles[1]).mean()
    # 24 jumps, each on a cell of the grid of probabilities, over a range of some units.
    assert wasserstein(first, second) == pytest.approx(expected, abs=24 * 6 / 20_000)


@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(-3, 3))
@settings(max_examples=80, deadline=None)
def test_cumulative_bounds_hold_the_measure(seed: int, steps: int, x: float) -> None:
    rng = np.random.default_rng(seed)
    values, parts = rng.normal(size=30), rng.dirichlet(np.ones(30))
    rule = gauss_rules(
        Matrix(torch.diag(torch.from_numpy(values))), torch.from_numpy(np.sqrt(parts)), steps
    ).nodes
    low, high = cumulative_bounds(rule, x)
    truth = parts[values < x].sum()
    assert low - 1e-9 <= truth <= high + 1e-9


def test_mass_moments_and_curve_of_a_known_spectrum() -> None:
    values = spectrum(300, seed=4)
    op = matrix_of(values)
    generator = torch.Generator().manual_seed(0)
    top = np.argsort(-np.abs(values))[:5]
    vectors, order = torch.linalg.eigh(op.a)[1], np.argsort(values)
    known = vectors.T[[int(np.flatnonzero(order == i)[0]) for i in top]].contiguous()
    rest = Deflated(op, known)
    density = Density(
        300, values[top],
        [gauss_rules(rest, random_complement(op, known, generator), 40).nodes for _ in range(12)],
    )  # fmt: skip
    for order_ in (1, 2, 3, 4):
        value, error = density.moment(order_)
        assert abs(value - (values**order_).mean()) <= quantile(0.999, 11) * error + 1e-9
    for x in (0.0, 0.3):
        mass = density.below(x)
        truth = (values < x).mean()
        margin = quantile(0.999, 11) * mass.standard_error
        assert mass.low - margin <= truth <= mass.high + margin
    assert density.spread() > 0
    curve = density.curve(-1.5, 3.5, 400)
    cell = curve.grid_G[1] - curve.grid_G[0]
    # Triangles keep the mass of the bulk: 295 of 300 eigenvalues.
    assert curve.density_G.sum() * cell == pytest.approx(295 / 300, abs=1e-9)
    smooth = np.histogram(values[np.abs(values) < 4], bins=10, range=(-1.5, 3.5))[0] / 300
    ours = curve.density_G.reshape(10, 40).sum(1) * cell
    # Nodes lie around the many eigenvalues next to zero: there only the sum is known. Twelve probes of 300 entries
    # hold every share to some percent of all.
    assert np.abs(ours - smooth)[4:].max() < 0.03
    assert ours[:4].sum() == pytest.approx(smooth[:4].sum(), abs=0.03)
    logs = [density.log_curve(1e-12, 100.0, 400, sign) for sign in (1, -1)]
    steps = np.diff(np.log10(logs[0].grid_G))[0]
    shares = [float(c.density_G.sum()) * steps for c in logs]
    # The axis is long enough for all triangles.
    assert sum(shares) == pytest.approx(295 / 300, abs=1e-9)
    assert shares[0] > 4 * shares[1]
