"""Sums over tensors that pass by are those of double precision, at every scale that float32 has."""

import pytest
import torch

from curvcli.operators.signals.reductions import Reduction


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e20, 0.0, float("nan"), float("inf")])
def test_a_reduction_is_that_of_double_precision(scale: float) -> None:
    """float32 sums of 210 squares are right to 210 eps, 2.5e-5 at worst; roots halve that."""
    torch.manual_seed(1)
    for entries in (3, 210):
        tensor = torch.randn(6, 5, 7).relu_()
        tensor.view(-1)[:entries] *= scale
        reduction = Reduction()
        reduction.see(tensor, 6, sequence=True, count_nonfinite=True)
        wide = tensor.double()
        rms = float(wide.square().mean().sqrt())
        assert reduction.entries == 210
        assert reduction.rms == pytest.approx(rms, rel=1e-5, nan_ok=True)
        assert reduction.peak == pytest.approx(float(wide.abs().max()), nan_ok=True)
        assert reduction.zero_fraction == float((wide == 0).double().mean())
        assert reduction.nonfinite == int((~wide.isfinite()).sum())
        by_sample = reduction.mean_squares_by_sample()
        assert by_sample is not None
        torch.testing.assert_close(
            by_sample, wide.square().mean((1, 2)), rtol=2.5e-5, atol=0, equal_nan=True
        )
        by_position = torch.tensor(reduction.rms_by_position(), dtype=torch.float64)
        torch.testing.assert_close(
            by_position, wide.square().mean((0, 2)).sqrt(), rtol=2.5e-5, atol=0, equal_nan=True
        )
