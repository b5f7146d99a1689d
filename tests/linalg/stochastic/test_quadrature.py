"""Gauss rules of Lanczos hold the moments and weights of the measure, and nothing that was taken out."""

import numpy as np
import pytest
import torch

from curvcli.linalg.lanczos.lanczos import Status
from curvcli.linalg.operator import Deflated, random_unit_vector
from curvcli.linalg.stochastic.quadrature import (
    Stopped,
    gauss_rule,
    gauss_rules,
    integrate,
    random_complement,
)
from tests.oracles.matrices import Matrix


def test_a_gauss_rule_of_m_steps_integrates_moments_up_to_2m_minus_1() -> None:
    """Against vᵀ A^k v of the same start vector."""
    values = torch.linspace(-1, 2, 40, dtype=torch.float64)
    op = Matrix(torch.diag(values))
    rule = gauss_rule(op, 6, torch.Generator().manual_seed(0))
    z = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = (z / z.norm()) ** 2
    for k in range(12):
        expected = float((squares * values**k).sum())
        assert float(rule.weights_M @ rule.theta_M**k) == pytest.approx(expected, abs=1e-12)
    rules = [gauss_rule(op, 40, torch.Generator().manual_seed(s)) for s in range(20)]
    trace = integrate(rules, lambda t: t, 40)
    assert trace.standard_error is not None
    assert abs(trace.value - float(values.sum())) <= 4 * trace.standard_error


def test_t7_weights_are_the_first_entries_of_the_eigenvectors() -> None:
    """A start vector with known components: the weights of its Gauss rule are their squares."""
    values = torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=torch.float64)
    parts = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    rules = gauss_rules(Matrix(torch.diag(values)), parts.sqrt(), 4)
    assert np.allclose(rules.nodes.theta_M, values.numpy())
    assert np.allclose(rules.nodes.weights_M, parts.numpy())
    # Half of the steps integrate polynomials of degree 3 exactly.
    for k in range(4):
        moment = float(parts @ values**k)
        assert rules.half.weights_M @ rules.half.theta_M**k == pytest.approx(moment)


def test_rules_do_not_see_what_was_taken_out() -> None:
    """Without projecting, rounding brings an outlier back that is a thousand times the bulk."""
    values = np.concatenate([[1000.0], np.linspace(0, 1, 99)])
    op = Matrix(torch.diag(torch.from_numpy(values)))
    known = torch.eye(100, dtype=torch.float64)[:1]
    q = random_complement(op, known, torch.Generator().manual_seed(0))
    assert gauss_rules(Deflated(op, known), q, 40).nodes.theta_M.max() <= 1 + 1e-9


def test_a_rule_that_is_stopped_is_that_of_the_steps_until_then() -> None:
    """The rule of as many steps as were made, and the reason, in the exception."""
    op = Matrix(torch.diag(torch.arange(1.0, 31.0, dtype=torch.float64)))
    reasons: list[Status | None] = [None, None, "timeout"]
    q_N = random_unit_vector(op, torch.Generator().manual_seed(0))
    with pytest.raises(Stopped) as early:
        gauss_rules(op, q_N, 20, lambda: reasons.pop(0))
    assert (early.value.reason, early.value.rules.matvecs) == ("timeout", 3)
    whole = gauss_rules(op, q_N, 3)
    np.testing.assert_array_equal(early.value.rules.nodes.theta_M, whole.nodes.theta_M)
    np.testing.assert_array_equal(early.value.rules.half.weights_M, whole.half.weights_M)
