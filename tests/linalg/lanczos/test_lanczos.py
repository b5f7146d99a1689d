"""Lanczos finds what matrices of prescribed spectrum have, and satisfies its identities."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curvcli.errors import CurvError, NoAnswerError, NonFiniteError
from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import LanczosResult, lanczos
from curvcli.linalg.lanczos.reach import reach, smallest_component
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.lanczos.state import load_state, save_state
from tests.oracles.matrices import OUTLIERS, Prescribed


@pytest.fixture(autouse=True, scope="module", params=[1 << 20, 0], ids=["full", "partial"])
def reorthogonalisation(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every test runs with each vector orthogonalised and with those left alone that need not be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curvcli.linalg.lanczos.factorization.WORTH_SKIPPING", request.param)
        yield request.param


def true_pairs(op: Prescribed, found: LanczosResult) -> np.ndarray:
    """The eigenvalues that `found` should hold, in its order."""
    bottom = len(found.values_K) - found.top
    return np.concatenate([op.eigenvalues[::-1][: found.top], op.eigenvalues[:bottom]])


def assert_right(op: Prescribed, found: LanczosResult, tol: float = 1e-3) -> None:
    """Every wanted eigenvalue within its bound; rounding is allowed 100 eps ‖A‖ (n ≤ 2000 sums)."""
    rounding = 100 * torch.finfo(op.dtype).eps * np.abs(op.eigenvalues).max()
    error = np.abs(found.values_K - true_pairs(op, found))
    assert (error <= found.bounds_K + rounding).all(), (found.values_K, true_pairs(op, found))
    assert found.status == "converged"
    assert all(found.converged_K)
    scale = np.maximum(np.abs(found.values_K), 0.01 * np.abs(op.eigenvalues).max())
    assert (found.bounds_K <= tol * scale).all()


EXHAUSTED = [
    *(-1, -0.5, 0.125, 0.25, 0.25, 0.3125, 0.375, 0.46875, 0.484375),
    *(0.5, 0.625, 0.75, 0.875, 0.875, 0.875, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("capacity", [17, 30, 200])
def test_outliers_are_found_at_both_ends_with_any_basis(dtype: torch.dtype, capacity: int) -> None:
    op = Prescribed(OUTLIERS, dtype)
    found = lanczos(op, Wanted(10, 3), capacity=capacity)
    assert_right(op, found)
    assert op.products == found.matvecs
    assert (found.restarts > 0) == (capacity < found.matvecs)


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=30),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**31),
)
# A residual that is rounding alone, in a basis that lost some orthogonality: two passes are not enough.
@example([0.0] * 9 + EXHAUSTED, torch.float64, 34)
# The squares of what is left underflow.
@example([0.0, 1.4e-21], torch.float32, 0)
@example([0.0, 1.4e-21], torch.float32, 1)
@example([1e-21, 1.4e-21, -1e-20], torch.float32, 2)
# The same spectra in every run, so that a failure can be repeated.
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_bound_holds_on_any_spectrum(
    eigenvalues: list[float], dtype: torch.dtype, seed: int
) -> None:
    """Residual bounds contain an eigenvalue whatever the spectrum: clustered, repeated, zero."""
    check_bounds(eigenvalues, dtype, seed)


def test_bounds_hold_where_the_krylov_space_ends_and_vectors_were_left_alone() -> None:
    """A fresh direction meets residuals that are not orthogonal to the basis; T has the sum for both sides."""
    clustered = [1.0, 0.5, 0.75, 0.814453125, 0.814300967497541, 0.265625, 0.125, 0.0625, 0.09375]
    spectrum = [0.0, 0.0, *clustered, -1.0, -0.5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curvcli.linalg.lanczos.factorization.WORTH_SKIPPING", 0)
        check_bounds(spectrum, torch.float64, 62)


def check_bounds(eigenvalues: list[float], dtype: torch.dtype, seed: int) -> None:
    """Some eigenvalue lies within each bound, and the rounding of a product."""
    op = Prescribed(eigenvalues, dtype, rotate=True)
    found = lanczos(op, Wanted(3, 2), seed=seed)
    norm = max(np.abs(op.eigenvalues).max(), 1e-30)
    # 30 eps: a dense product of length n ≤ 30 rounds by at most n eps ‖A‖.
    rounding = 30 * torch.finfo(dtype).eps * norm
    for value, bound in zip(found.values_K, found.bounds_K, strict=True):
        assert np.abs(op.eigenvalues - value).min() <= bound + rounding


def test_basis_stays_orthonormal_and_projects_the_operator(reorthogonalisation: int) -> None:
    """QQᵀ = I and QAQᵀ = T: to 100 eps where each vector is orthogonalised, to √eps otherwise."""
    op = Prescribed(OUTLIERS, torch.float64)
    state = start(op, 60, seed=0)
    lanczos(op, Wanted(10, 3), state=state, recheck=0)
    q_MN = state.basis.rows[: state.processed]
    eps = torch.finfo(torch.float64).eps
    left = 100 * eps if reorthogonalisation else eps**0.5
    assert torch.allclose(q_MN @ q_MN.T, torch.eye(len(q_MN), dtype=torch.float64), atol=left)
    projected = (q_MN * op.diagonal) @ q_MN.T
    assert np.allclose(projected.numpy(), state.projected, atol=left * 10)


def test_t3_no_copies_of_a_simple_eigenvalue() -> None:
    """Without reorthogonalisation one eigenvalue is returned as several converged ones."""
    op = Prescribed([1.0, *np.linspace(0, 1e-3, 400)], torch.float32)
    found = lanczos(op, Wanted(2, 0), max_matvecs=60, tol=1e-6)
    assert found.values_K[0] == pytest.approx(1.0, rel=1e-5)
    assert found.values_K[1] <= 1.1e-3


@pytest.mark.parametrize("scale", [1e-13, 1.0, 1e13])
def test_t11_breakdown_is_judged_relative_to_the_norm(scale: float) -> None:
    op = Prescribed(scale * np.array([1.0, 2.0, 3.0]))
    found = lanczos(op, Wanted(3, 0))
    # 10 eps: three exact steps.
    assert found.values_K == pytest.approx(scale * np.array([3, 2, 1]), rel=1e-14)


def test_t12_a_multiple_of_the_identity_has_all_its_eigenvalues() -> None:
    op = Prescribed([3.0] * 12)
    found = lanczos(op, Wanted(5, 0))
    assert found.values_K == pytest.approx([3.0] * 5, rel=1e-14)
    assert found.status == "converged"


def test_copies_of_multiple_eigenvalues_are_found() -> None:
    """I ⊗ A, the Hessian of a linear model with several outputs: every eigenvalue three times."""
    block = np.concatenate([[5.0, 4.0, 3.0], np.linspace(0, 1, 60)])
    op = Prescribed(np.repeat(block, 3), torch.float64, rotate=True)
    assert_right(op, lanczos(op, Wanted(7, 0)))


@pytest.mark.parametrize("capacity", [40, 200])
def test_the_look_for_copies_does_not_keep_a_run_from_converging(capacity: int) -> None:
    """The direction that was being followed waits meanwhile, and is taken up again where a pair needs it.

    120 spectra at loose tolerances, where pairs have only just converged when the look begins: it may cost its
    8 products, those of a second look after a find, and as many again to finish.
    """
    for seed in range(120):
        rng = np.random.default_rng(seed)
        spectrum = np.concatenate([rng.normal(size=300) * 0.3, rng.uniform(-2, 8, size=5)])
        op = Prescribed(spectrum, torch.float32)
        without = lanczos(op, Wanted(3, 2), seed=seed, recheck=0, capacity=capacity)
        found = lanczos(op, Wanted(3, 2), seed=seed, capacity=capacity, max_matvecs=400)
        assert found.status == "converged", seed
        assert found.matvecs <= without.matvecs + 8 + 24 * (1 + found.copies_found), seed
        error = np.abs(op.eigenvalues[:, None] - found.values_K).min(axis=0)
        rounding = 100 * torch.finfo(op.dtype).eps * np.abs(spectrum).max()
        assert (error <= found.bounds_K + rounding).all(), seed


def test_zero_operator() -> None:
    op = Prescribed([0.0] * 50)
    found = lanczos(op, Wanted(3, 2))
    assert found.values_K.tolist() == [0.0] * 5
    assert (found.lower, found.upper) == (0.0, 0.0)


def test_more_pairs_than_dimensions() -> None:
    op = Prescribed([1.0, 2.0])
    found = lanczos(op, Wanted(10, 3))
    assert found.values_K == pytest.approx([2, 1, 1, 2], rel=1e-14)


def test_t13_order_by_magnitude_is_asked_for_by_name() -> None:
    op = Prescribed([-5.0, -1.0, 0.5, 3.0, 4.0])
    assert lanczos(op, Wanted(3, 0, "value")).values_K == pytest.approx([4, 3, 0.5])
    assert lanczos(op, Wanted(3, 0, "magnitude")).values_K == pytest.approx([-5, 4, 3])


def test_t4_a_budget_that_is_too_small_is_said() -> None:
    op = Prescribed(OUTLIERS)
    found = lanczos(op, Wanted(10, 3), max_matvecs=14)
    assert found.status == "max_matvecs"
    assert not all(found.converged_K)
    assert found.matvecs == 14


def test_same_seed_same_digits() -> None:
    op = Prescribed(OUTLIERS, torch.float32)
    first, second = (lanczos(op, Wanted(4, 2), seed=3) for _ in range(2))
    assert first.values_K.tolist() == second.values_K.tolist()
    assert torch.equal(first.vectors_KN, second.vectors_KN)


def test_interruption_returns_what_is_known() -> None:
    op = Prescribed(OUTLIERS)
    found = lanczos(op, Wanted(2, 0), stop=lambda: "interrupted" if op.products >= 9 else None)
    assert (found.status, found.matvecs) == ("interrupted", 9)
    with pytest.raises(NoAnswerError):
        lanczos(op, Wanted(2, 0), stop=lambda: "timeout")


def test_nan_in_a_product_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="product 1"):
        lanczos(Prescribed([float("nan"), 1.0]), Wanted(1))


def test_basis_too_small_is_an_error() -> None:
    with pytest.raises(CurvError, match="at least 13 vectors"):
        lanczos(Prescribed(OUTLIERS), Wanted(10), capacity=8)


def test_saved_state_goes_on_where_it_stopped(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Interrupted, saved and resumed gives the answer of an uninterrupted run."""
    whole = lanczos(Prescribed(OUTLIERS), Wanted(10, 3), capacity=25)
    op = Prescribed(OUTLIERS)
    state = start(op, 25, seed=0)
    lanczos(op, Wanted(10, 3), state=state, max_matvecs=20)
    save_state(tmp_path / "s", state, "print")
    again = load_state(tmp_path / "s", op, 25, "print")
    found = lanczos(op, Wanted(10, 3), state=again)
    assert_right(op, found)
    assert found.matvecs <= whole.matvecs + 2
    with pytest.raises(CurvError, match="another run"):
        load_state(tmp_path / "s", op, 25, "other")
    (tmp_path / "bad").write_bytes(b"nonsense")
    with pytest.raises(CurvError, match="not a readable state"):
        load_state(tmp_path / "bad", op, 25, "print")


def test_resuming_a_converged_state_costs_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    op = Prescribed(OUTLIERS)
    state = start(op, 100, seed=0)
    first = lanczos(op, Wanted(4, 1), state=state)
    save_state(tmp_path / "s", state, "print")
    before = op.products
    second = lanczos(op, Wanted(4, 1), state=load_state(tmp_path / "s", op, 100, "print"))
    assert op.products == before
    assert second.values_K == pytest.approx(first.values_K, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000])
def test_smallest_component_has_its_probability(n: int) -> None:
    """Against 20,000 random unit vectors; 4 standard deviations of the binomial."""
    p, draws = 0.1, 20_000
    z = np.random.default_rng(0).normal(size=(draws, n))
    component = np.abs(z[:, 0]) / np.linalg.norm(z, axis=1)
    share = (component < smallest_component(n, p)).mean()
    assert share <= p + 4 * (p * (1 - p) / draws) ** 0.5
    if n > 1:  # and it is not needlessly small
        assert share >= p - 4 * (p * (1 - p) / draws) ** 0.5 - 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reach_fails_no_more_often_than_it_says(dtype: torch.dtype) -> None:
    """400 short runs on hard spectra at probability 0.9: at most 40 failures and 3 standard deviations."""
    failures, runs, useful = 0, 400, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        spectrum = np.concatenate([rng.normal(size=100) * 0.1, rng.uniform(-1, 3, size=3)])
        op = Prescribed(spectrum, dtype)
        found = lanczos(op, Wanted(1, 1), seed=seed, max_matvecs=8, probability=0.1)
        rounding = 100 * torch.finfo(dtype).eps
        failures += bool(
            found.lower > op.eigenvalues[0] + rounding
            or found.upper < op.eigenvalues[-1] - rounding
        )
        useful += bool(found.upper < 3 * op.eigenvalues[-1] + 1)
    assert failures <= 40 + 3 * (400 * 0.1 * 0.9) ** 0.5
    assert useful > 350


def test_reach_of_an_exact_run_is_exact() -> None:
    assert reach([2.0, 2.0], [1.0, 0.0], 2, 0.01) == pytest.approx((1.0, 3.0))


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=12),
    st.lists(st.floats(0.2, 1), min_size=12, max_size=12),
    st.sampled_from([1e-12, 1.0, 1e12]),
)
@settings(max_examples=60, deadline=None)
def test_reach_is_where_the_lanczos_polynomial_leaves_the_unit_interval(
    alphas: list[float], betas: list[float], scale: float
) -> None:
    """|p_m| δ = 1 at both ends, p_m by its three-term recurrence.

    The roots of p_m are known to m eps ‖T‖ (10 for constants), which counts by Σ 1/|λ − θ_i|; 1e-8: Newton's margin.
    """
    m = len(alphas)
    a, b = scale * np.array(alphas), scale * np.array(betas[:m])
    ends = reach(a.tolist(), b.tolist(), 1000, 1e-3)
    theta = np.linalg.eigvalsh(np.diag(a) + np.diag(b[: m - 1], 1) + np.diag(b[: m - 1], -1))
    rounding = 10 * m * np.finfo(float).eps * max(np.abs(a).max(), b.max())
    for end in ends:
        before, now = 0.0, 1.0
        for j in range(m):
            coupling = b[j - 1] * before if j else 0.0
            before, now = now, ((end - a[j]) * now - coupling) / b[j]
        gaps = np.maximum(np.abs(end - theta), rounding)
        allowed = 1e-8 + rounding * float((1 / gaps).sum())
        assert abs(now) * smallest_component(1000, 5e-4) == pytest.approx(1, rel=allowed)
