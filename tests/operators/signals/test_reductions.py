"""Sums over tensors that pass by are those of double precision, at every scale that float32 has."""

import math

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


@pytest.mark.parametrize("shape", [(6, 5), (6, 7, 5), (4, 3, 2, 2)])
def test_two_halves_add_up_to_the_whole(shape: tuple[int, ...]) -> None:
    """What two processes saw of one layer; sums in another order, in double precision."""
    torch.manual_seed(0)
    x = torch.randn(shape).relu_()
    half = len(x) // 2
    pieces = [x[:half], x[half:]]
    alone, parts = Reduction(), [Reduction(), Reduction()]
    for piece, part in zip(pieces, parts, strict=True):
        for seen in (alone, part):
            seen.see(piece, len(piece), sequence=True, count_nonfinite=True)
    whole = parts[0].on_host()
    whole.add(parts[1].on_host())
    assert whole.rms == pytest.approx(alone.rms, rel=1e-14)
    assert (whole.peak, whole.zero_fraction, whole.entries) == (
        alone.peak, alone.zero_fraction, alone.entries,
    )  # fmt: skip
    torch.testing.assert_close(whole.mean_squares_by_sample(), alone.mean_squares_by_sample())
    positions = alone.rms_by_position()
    assert whole.rms_by_position() == (positions and pytest.approx(positions, rel=1e-14))
    # The first half is as it was.
    assert parts[0].entries == pieces[0].numel()


def test_nan_in_either_half_stays() -> None:
    parts = [Reduction(), Reduction()]
    parts[0].see(torch.tensor([[1.0]]), 1, sequence=False)
    parts[1].see(torch.tensor([[math.nan]]), 1, sequence=False)
    for first, second in (parts, parts[::-1]):
        whole = first.on_host()
        whole.add(second)
        assert not whole.finite
        assert math.isnan(whole.peak or 0.0)
