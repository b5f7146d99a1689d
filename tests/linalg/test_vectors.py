"""Norms of long vectors are right to rounding, whatever their length."""

import pytest
import torch

from curvcli.linalg.vectors import euclidean_norm, euclidean_norms


@pytest.mark.parametrize("n", [1, 1000, 16384, 16385, 300_001, 11_000_003])
def test_norms_agree_with_float64(n: int) -> None:
    v_N = torch.randn(n, generator=torch.Generator().manual_seed(n)) + 0.5
    truth = float(torch.linalg.vector_norm(v_N.double()))
    # Each of two levels of pairwise or vectorised sums costs some eps of float32.
    assert abs(float(euclidean_norm(v_N)) / truth - 1) < 20 * torch.finfo(torch.float32).eps
    assert torch.equal(euclidean_norms(v_N[None])[0], euclidean_norm(v_N))


def test_norms_keep_the_scale_of_what_is_huge_or_tiny() -> None:
    for scale in (1e-15, 1e15):
        v_N = torch.full((100_000,), scale)
        assert float(euclidean_norm(v_N)) == pytest.approx(scale * 100_000**0.5, rel=1e-5)
