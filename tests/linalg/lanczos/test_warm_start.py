"""Lanczos from a guess needs fewer products, and its reach still fails no more often than it says."""

import numpy as np
import pytest
import torch

from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.reach import smallest_component
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.lanczos.warm import mixed
from curvcli.linalg.operator import random_unit_vector
from tests.oracles.matrices import OUTLIERS, Prescribed


@pytest.mark.parametrize("guess", ["right", "wrong", "opposed"])
def test_the_reach_from_a_guess_fails_no_more_often_than_it_says(guess: str) -> None:
    """400 short runs at probability 0.9 each: at most 40 failures and 3 standard deviations.

    A wrong guess is orthogonal to both extreme eigenvectors: the case in which a start without a random part
    would never see them. An opposed one cancels them as well as a guess of its size can.
    """
    failures, runs, useful = 0, 400, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        op = Prescribed(np.concatenate([rng.normal(size=100) * 0.1, rng.uniform(-1, 3, size=3)]))
        guess_N = torch.zeros(op.n, dtype=torch.float64)
        if guess == "right":
            guess_N[[0, -1]] = 1.0
        elif guess == "wrong":
            guess_N[op.n // 2] = 1.0
        else:
            guess_N[op.n // 2] = 1.0
            guess_N[[0, -1]] = -0.1 / op.n**0.5
        state = start(op, 103, seed, guess_N)
        found = lanczos(op, Wanted(1, 1), state=state, max_matvecs=8, probability=0.1)
        failures += bool(
            found.lower > op.eigenvalues[0] + 1e-12 or found.upper < op.eigenvalues[-1] - 1e-12
        )
        useful += bool(found.upper < 3 * op.eigenvalues[-1] + 1)
    assert failures <= 40 + 3 * (400 * 0.1 * 0.9) ** 0.5
    assert useful > 350


@pytest.mark.parametrize("n", [3, 10, 1000])
@pytest.mark.parametrize("known", [0.0, 0.05, 0.7])
def test_the_random_part_gives_the_component_it_promises(n: int, known: float) -> None:
    """20,000 starts from a guess with a given component of an eigenvector; 4 standard deviations of the binomial."""
    p, draws = 0.1, 20_000
    z = np.random.default_rng(0).normal(size=(draws, n))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    w = np.zeros(n)
    w[0], w[1] = known, (1 - known**2) ** 0.5
    sums = w + 0.1 * z
    lengths = np.linalg.norm(sums, axis=1)
    promised = 0.1 / lengths * smallest_component(n, p)
    failed = (np.abs(sums[:, 0]) / lengths < promised).mean()
    assert failed <= p + 4 * (p * (1 - p) / draws) ** 0.5
    op = Prescribed(np.ones(n))
    first = mixed(
        random_unit_vector(op, torch.Generator().manual_seed(0)), torch.from_numpy(w), part=0.1
    )
    assert float(torch.linalg.vector_norm(first.vector_N)) == pytest.approx(1, rel=1e-12)
    assert 0.1 / 1.1 <= first.share <= 0.1 / 0.9


@pytest.mark.parametrize("n", [1, 2])
def test_a_guess_is_not_used_where_the_proof_does_not_hold(n: int) -> None:
    op = Prescribed(np.arange(1.0, n + 1))
    state = start(op, n, 0, torch.ones(n, dtype=torch.float64))
    assert state.share == 1.0
    assert torch.equal(state.basis[0], start(op, n, 0).basis[0])


def test_a_near_guess_saves_products_and_finds_the_same() -> None:
    """Guesses from a matrix whose eigenvectors are turned by about 0.1."""
    op = Prescribed(OUTLIERS)
    cold = lanczos(op, Wanted(1, 1), recheck=0, seed=1)
    generator = torch.Generator().manual_seed(5)
    guess_N = cold.vectors_KN.sum(0) + 0.1 * random_unit_vector(op, generator)
    warm = lanczos(op, Wanted(1, 1), recheck=0, state=start(op, 200, 2, guess_N))
    assert warm.status == "converged"
    assert warm.matvecs < cold.matvecs
    for found in (cold, warm):
        truth = np.array([op.eigenvalues[-1], op.eigenvalues[0]])
        assert (np.abs(found.values_K - truth) <= found.bounds_K + 1e-12).all()
        assert found.lower <= truth[1]
        assert found.upper >= truth[0]
