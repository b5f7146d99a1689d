"""Golub-Kahan-Lanczos finds the singular values of matrices that have known ones, many at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvcli.linalg.lyapunov import lyapunov
from curvcli.linalg.svd.golub_kahan import golub_kahan, true_residuals


class Dense:
    """Matrices that are known."""

    def __init__(self, a_SMN: Tensor) -> None:
        self.a = a_SMN
        self.count, self.rows, self.columns = a_SMN.shape
        self.dtype, self.device = a_SMN.dtype, a_SMN.device

    def jvp(self, v_SN: Tensor) -> Tensor:
        out: Tensor = torch.einsum("smn,sn->sm", self.a, v_SN)
        return out

    def vjp(self, u_SM: Tensor) -> Tensor:
        out: Tensor = torch.einsum("smn,sm->sn", self.a, u_SM)
        return out


def with_values(values: list[float], rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix with these singular values and zeros."""
    generator = torch.Generator().manual_seed(seed)
    k = len(values)
    u, _ = torch.linalg.qr(torch.randn(rows, k, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, k, generator=generator, dtype=torch.float64))
    a: Tensor = u * torch.tensor(values, dtype=torch.float64) @ v.T
    return a


def check(a_SMN: Tensor, top: int) -> None:
    """The top values are numpy's, within residuals that are small."""
    op = Dense(a_SMN)
    found = golub_kahan(op, top, tol=1e-6)
    values, errors = true_residuals(op, found)
    expected = np.linalg.svd(a_SMN.double().numpy(), compute_uv=False)[:, : values.shape[1]]
    assert found.complete
    assert bool(found.converged_SK.all())
    # Values err by the square of the residual over the gap, and by rounding.
    eps = torch.finfo(a_SMN.dtype).eps
    scale = expected[:, :1] + 1e-300
    assert np.all(np.abs(values.numpy() - expected) <= errors.numpy() + 64 * eps * scale)
    assert np.all(errors.numpy() <= (1e-6 + 64 * eps) * scale)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40),
    st.sampled_from([torch.float64, torch.float32]),
)  # fmt: skip
def test_random_matrices(
    seed: int, count: int, rows: int, columns: int, dtype: torch.dtype
) -> None:
    """Any shape, all matrices at once, in both precisions."""
    generator = torch.Generator().manual_seed(seed)
    check(torch.randn(count, rows, columns, generator=generator, dtype=torch.float64).to(dtype), 5)


@pytest.mark.parametrize("scale", [1.0, 1e-13, 1e13])
@pytest.mark.parametrize("shape", [(30, 40), (40, 30), (30, 30)])
def test_copies_and_breakdowns(scale: float, shape: tuple[int, int]) -> None:
    """Multiples, identities, low rank and generic matrices in one batch, at any scale."""
    kinds = [
        [5.0, 5.0, 5.0, 2.0, 2.0, 1.0],
        [1.0] * 30,
        [3.0],
        [0.0],
        list(np.linspace(4, 0.1, 30)),
    ]
    check(scale * torch.stack([with_values(v, *shape) for v in kinds]), 4)


def test_copies_need_the_second_look() -> None:
    """A single Krylov space holds one vector of each multiple value; the deflated matrix shows the others."""
    a = with_values([5.0, 5.0, 3.0, *np.linspace(2, 0.1, 60).tolist()], 80, 90)[None]
    blind = golub_kahan(Dense(a), 2, recheck=0)
    assert blind.values_SK[0].tolist() == pytest.approx([5, 3], rel=1e-3)
    assert not blind.rechecked
    seen = golub_kahan(Dense(a), 2)
    assert seen.values_SK[0].tolist() == pytest.approx([5, 5], rel=1e-3)
    assert seen.copies_found == 1
    assert seen.rechecked


@pytest.mark.parametrize("shape", [(50, 80), (80, 50)])
def test_captured_norm(shape: tuple[int, int]) -> None:
    """What the recurrence says the basis holds of ‖A‖_F² is what it holds."""
    a = torch.randn(2, *shape, dtype=torch.float64)
    found = golub_kahan(Dense(a), 3)
    held = (found.basis_SJM @ a).square().sum((1, 2))
    assert torch.allclose(found.captured_S, held, rtol=1e-12)


def test_a_matrix_gets_the_same_vectors_alone_and_in_a_batch() -> None:
    """Seeds belong to matrices, so that cutting a batch in pieces changes rounding only."""
    a = torch.randn(3, 40, 50, dtype=torch.float64)
    together = golub_kahan(Dense(a), 2, seeds=[7, 8, 9], max_steps=6)
    alone = golub_kahan(Dense(a[1:2]), 2, seeds=[8], max_steps=6)
    assert torch.allclose(together.values_SK[1], alone.values_SK[0], rtol=1e-12)


def test_lyapunov_of_diagonal_steps() -> None:
    """Diagonal maps that vary in time: exponents are the means of their logarithms."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(400, 3, generator=generator, dtype=torch.float64) * torch.tensor(
        [2.0, 0.5, 0.1]
    )
    valid = torch.ones(1, dtype=torch.bool)
    pushes = [(lambda z, d=d: d[:, None] * z, valid) for d in steps]
    found = lyapunov(pushes, 400, torch.eye(3, dtype=torch.float64)[None])
    expected = steps[80:].log().mean(0)
    assert torch.allclose(found.exponents_K, expected, rtol=1e-12)
    # The means over stretches scatter: the error covers the truth, E log = log a − 1, at three of it.
    truth = torch.tensor([2.0, 0.5, 0.1]).double().log() - 1
    assert bool(((found.exponents_K - truth).abs() <= 3 * found.errors_K).all())
