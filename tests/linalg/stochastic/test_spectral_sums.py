"""Sums over spectra are exact where the space is spanned, and else within the error that they state."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli.linalg.stochastic.krylov import krylov
from curvcli.linalg.stochastic.spectral_sums import Goal, estimate
from tests.oracles.matrices import Matrix, matrix_of, spectrum


def test_a_space_that_is_spanned_gives_exact_sums() -> None:
    values = spectrum(40)
    op = matrix_of(values)
    found, status = estimate(op, 40, Goal(0.01, (np.abs,)), torch.Generator().manual_seed(0))
    assert status == "converged"
    assert not found.forms
    # eigh in float64 of a matrix of norm 50
    assert found.trace().value == pytest.approx(values.sum(), abs=1e-11)
    assert found.trace().standard_error == 0
    assert found.square_sum().value == pytest.approx((values**2).sum(), abs=1e-9)
    assert found.sum_of(np.abs).value == pytest.approx(np.abs(values).sum(), abs=1e-11)


def test_breakdowns_are_continued() -> None:
    """T11: H = 3 I has one Krylov vector at a time."""
    op = Matrix(3 * torch.eye(12, dtype=torch.float64))
    exact = krylov(op, 12, torch.Generator().manual_seed(0))
    assert exact.trace_of(lambda x: x) == pytest.approx(36)
    tiny = Matrix(1e-13 * torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)))
    exact = krylov(tiny, 3, torch.Generator().manual_seed(0))
    assert exact.trace_of(lambda x: x) == pytest.approx(6e-13)


def covered(runs: int, tol: float) -> dict[str, float]:
    """In how many of the runs the 95 % intervals hold the truth."""
    values = spectrum()
    op = matrix_of(values)
    half = len(values) // 2
    diagonal = op.a.diag().numpy()
    truth = {
        "trace": values.sum(),
        "squares": (values**2).sum(),
        "participation": values.sum() ** 2 / (values**2).sum(),
        "block": diagonal[:half].sum(),
    }
    held = dict.fromkeys(truth, 0)
    for seed in range(runs):
        found, _ = estimate(
            op, 16, Goal(tol), torch.Generator().manual_seed(1000 + seed),
            blocks=lambda v: torch.stack([v[:half].sum(), v[half:].sum()]),
        )  # fmt: skip
        sums = {
            "trace": found.trace(),
            "squares": found.square_sum(),
            "participation": found.participation_ratio(),
            "block": found.block_traces()[0],
        }
        for name, one in sums.items():
            held[name] += abs(one.value - truth[name]) <= one.half_width
    return {name: count / runs for name, count in held.items()}


@pytest.mark.parametrize("tol", [1.0, 0.02])
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent_of_500_runs(tol: float) -> None:
    """With a fixed number of probes, and stopped on the standard error."""
    for name, share in covered(500, tol).items():
        assert 0.93 <= share <= 0.97, name


def test_t6_a_trace_is_stopped_on_its_standard_error_not_on_a_running_mean() -> None:
    """A running mean that moves by less than 0.1 % stops after 2 to 8 probes, 15 to 31 % off."""
    values = spectrum(400, seed=5)
    op = matrix_of(values)
    errors = []
    for seed in range(40):
        found, status = estimate(op, 4, Goal(0.03), torch.Generator().manual_seed(seed))
        assert status == "converged"
        trace = found.trace()
        assert trace.standard_error <= 0.03 * max(abs(trace.value), found.square_sum().value ** 0.5)
        errors.append(
            abs(trace.value - values.sum()) / max(values.sum(), np.sqrt((values**2).sum()))
        )
    assert np.mean(errors) < 0.03


def test_the_budget_ends_a_run_that_says_so() -> None:
    op = matrix_of(spectrum())
    found, status = estimate(op, 8, Goal(1e-9, max_matvecs=40), torch.Generator().manual_seed(0))
    assert status == "max_matvecs"
    assert len(found.forms) == 40 - len(found.exact.vectors_LN)
    _, status = estimate(
        op, 8, Goal(1e-9), torch.Generator().manual_seed(0), stop=lambda: "timeout"
    )
    assert status == "timeout"


@given(st.integers(5, 40), st.integers(0, 1000), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_diagonal_and_its_blocks(n: int, seed: int, kept: int) -> None:
    """Every probe is exact where the sign vectors are all the coordinate axes: E = the diagonal of A."""
    values = np.random.default_rng(seed).normal(size=n)
    op = matrix_of(values, seed)
    exact = krylov(op, kept, torch.Generator().manual_seed(seed))
    q = exact.kept_MN
    expected = (q * (q @ op.a)).sum(0)
    # The recurrence against products: rounding times the norm.
    assert torch.allclose(exact.diagonal(), expected, atol=1e-11)
