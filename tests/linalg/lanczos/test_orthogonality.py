"""Partial reorthogonalisation leaves no more out than it estimates: Gram matrices, true residuals."""

import numpy as np
import pytest
import torch

from curvcli.linalg.basis import Basis
from curvcli.linalg.lanczos import factorization as engine
from curvcli.linalg.lanczos.factorization import LanczosState, start
from curvcli.linalg.lanczos.lanczos import LOSS, LanczosResult, lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.lanczos.state import load_state, save_state
from tests.oracles.matrices import OUTLIERS, Prescribed

SPECTRA = {
    "outliers": OUTLIERS,
    "uniform": np.linspace(-1, 1, 900),
    "decaying": np.logspace(3, -6, 700),
    "one dominates": np.append(np.random.default_rng(1).uniform(size=600), 1e4),
    "copies": np.concatenate(
        [[10.0, 10, 10, 5, 5], np.random.default_rng(2).normal(size=800) * 0.1]
    ),
}
TOL = 1e-3


@pytest.fixture(autouse=True)
def _even_small_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WORTH_SKIPPING", 0)


def run(op: Prescribed, capacity: int = 200) -> tuple[LanczosState, LanczosResult]:
    state = start(op, capacity, seed=0)
    return state, lanczos(op, Wanted(6, 3), state=state, tol=TOL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_basis_is_semiorthogonal(spectrum: str, dtype: torch.dtype) -> None:
    """|q_k·q_j| ≤ √eps for all of them, where Simon's theory says that T is right to rounding."""
    state, _ = run(Prescribed(SPECTRA[spectrum], dtype, rotate=True))
    q_MN = state.basis.rows[: state.processed].double()
    loss = (q_MN @ q_MN.T - torch.eye(len(q_MN), dtype=torch.float64)).abs().max()
    assert loss <= torch.finfo(dtype).eps ** 0.5


@pytest.mark.parametrize("capacity", [25, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_bounds_hold_with_what_was_left_out(
    spectrum: str, dtype: torch.dtype, capacity: int
) -> None:
    """‖A v − θ v‖ ≤ ρ in float64, but for rounding (100 eps ‖A‖) and the share of the tolerance given to a loss."""
    op = Prescribed(SPECTRA[spectrum], dtype, rotate=True)
    _, found = run(op, capacity)
    assert op.matrix is not None
    v_KN, values_K = found.vectors_KN.double(), torch.from_numpy(found.values_K)
    true_K = (v_KN @ op.matrix.double() - values_K[:, None] * v_KN).norm(dim=1).numpy()
    norm = np.abs(op.eigenvalues).max()
    allowed_K = LOSS * TOL * np.maximum(np.abs(found.values_K), 0.01 * norm)
    assert (true_K <= found.bounds_K + allowed_K + 100 * torch.finfo(dtype).eps * norm).all()


def test_vectors_are_left_alone_and_no_product_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a spectrum without outliers most vectors stay as they are, with the eigenvalues of full orthogonalisation."""
    op = Prescribed(SPECTRA["uniform"], torch.float64, rotate=True)
    calls: list[bool] = []
    project_out = Basis.project_out
    monkeypatch.setattr(
        Basis,
        "project_out",
        lambda *args, **kwargs: calls.append(True) or project_out(*args, **kwargs),  # type: ignore[func-returns-value]
    )
    _, partial = run(op)
    orthogonalised = len(calls)
    monkeypatch.setattr(engine, "WORTH_SKIPPING", 1 << 62)
    _, full = run(op)
    assert len(calls) - orthogonalised >= full.matvecs
    assert orthogonalised < full.matvecs / 2
    assert partial.matvecs == full.matvecs
    # Both bounds hold, so the values differ by no more than their sum.
    assert (np.abs(partial.values_K - full.values_K) <= partial.bounds_K + full.bounds_K).all()


def test_what_was_left_out_does_not_grow_with_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of single vectors, added up at each change of basis, would double with every restart."""
    op = Prescribed(np.linspace(-1, 1, 900), torch.float32)
    state = start(op, 60, seed=0)
    partial = lanczos(op, Wanted(40), state=state, tol=1e-2, max_matvecs=3000)
    assert np.abs(state.left_out_MM).max() > 0
    monkeypatch.setattr(engine, "WORTH_SKIPPING", 1 << 62)
    full = lanczos(op, Wanted(40), capacity=60, tol=1e-2, max_matvecs=3000)
    assert full.restarts >= 20
    assert (partial.status, partial.matvecs) == (full.status, full.matvecs)


@pytest.mark.parametrize("capacity", [25, 200])
def test_a_resumed_run_knows_what_was_left_out(tmp_path, capacity: int) -> None:  # type: ignore[no-untyped-def]
    op = Prescribed(OUTLIERS, torch.float32)
    state, found = run(op, capacity)
    assert np.abs(state.left_out_MM).max() > 0
    save_state(tmp_path / "s", state, "x")
    again = lanczos(op, Wanted(6, 3), state=load_state(tmp_path / "s", op, capacity, "x"), tol=TOL)
    assert again.bounds_K == pytest.approx(found.bounds_K, rel=1e-12)
