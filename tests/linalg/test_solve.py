"""Solvers of linear systems solve definite and indefinite ones, and see negative curvature."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli.linalg.solve import conjugate_gradients, minres
from tests.oracles.matrices import Matrix


@given(
    st.lists(st.floats(-5, 5).filter(lambda v: abs(v) > 0.1), min_size=2, max_size=15),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_minres_solves_indefinite_systems_and_sees_negative_curvature(
    values: list[float], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    a = (q * torch.tensor(values, dtype=torch.float64)) @ q.T
    b = torch.randn(n, generator=generator, dtype=torch.float64)
    found = minres(Matrix(a), b, tol=1e-9, max_matvecs=200)
    # The recurrence loses orthogonality: 1e-6 of the right-hand side remains at most.
    assert torch.linalg.vector_norm(b - a @ found.x_N) <= 1e-6 * torch.linalg.vector_norm(b)
    if found.negative_direction_N is not None:
        d = found.negative_direction_N
        assert float(d @ a @ d) <= 1e-9 * float(d @ d)
    if min(values) > 0:
        assert found.negative_direction_N is None
        cg = conjugate_gradients(Matrix(a), b, tol=1e-9)
        assert cg.status == "converged"
        assert torch.allclose(cg.x_N, torch.linalg.solve(a, b), atol=1e-6)
    if max(values) < 0:
        assert conjugate_gradients(Matrix(a), b).status == "negative-curvature"
        assert minres(Matrix(a), b, stop_at_negative_curvature=True).matvecs == 1
