"""A trace from probes beside known eigenvectors is right within the error that it states."""

import numpy as np
import pytest
import torch

from curvcli.linalg.stochastic.probes import deflated_trace
from tests.oracles.matrices import OUTLIERS, Prescribed


def test_the_deflated_trace_is_exact_where_the_eigenvectors_are_all_known() -> None:
    op = Prescribed(np.arange(1.0, 9.0))
    found = deflated_trace(
        op, torch.eye(8, dtype=torch.float64)[-3:], [6.0, 7.0, 8.0], 4, torch.Generator()
    )
    # A diagonal matrix and random signs: every sample is the trace of the rest.
    assert found is not None
    assert found.value == pytest.approx(36, rel=1e-12)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_the_error_of_the_trace_is_right() -> None:
    """Of 200 seeded runs 90 to 98 % lie within two standard errors (8 probes: Student's t gives 91.5 %)."""
    op = Prescribed(OUTLIERS[-60:], rotate=True)
    truth, within = op.eigenvalues.sum(), 0
    for seed in range(200):
        start = torch.eye(op.n, dtype=torch.float64)[:1]
        value = float(start[0] @ op.matvec(start[0]))
        generator = torch.Generator().manual_seed(seed)
        found = deflated_trace(op, start, [value], 8, generator)
        assert found is not None
        assert found.standard_error is not None
        within += abs(found.value - truth) <= 2 * found.standard_error
    assert 0.86 * 200 <= within <= 0.97 * 200
