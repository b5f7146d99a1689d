"""A monitor tells how plastic a network is, in series: ranks by numpy, dead units by construction."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvcli.training.monitor import Monitor
from tests.training.loops import X, Y


def rank(matrix: Tensor) -> float:
    values = np.linalg.svd(matrix.detach().double().numpy(), compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def test_ranks_and_dead_units_over_time() -> None:
    """Features that lose directions and units that are killed between two measurements show in both series."""
    torch.manual_seed(0)
    first, last = nn.Linear(8, 12), nn.Linear(12, 3)
    model = nn.Sequential(first, nn.ReLU(), last)
    monitor = Monitor(model, "cross_entropy", data=(X, Y), every=1, budget=None, dtype="float64")
    for killed in (0, 6):
        with torch.no_grad():
            first.bias[:killed] = -100.0
        monitor.step()
        figures = monitor.history[-1].figures
        features = torch.relu(first(X)).detach()
        # The weights are float32; what is computed from them in float64 on both sides agrees to its rounding.
        assert figures["plasticity.feature_rank"] == pytest.approx(
            rank(features.double() - features.double().mean(0)), rel=1e-6
        )
        assert figures["plasticity.weight_rank.0"] == pytest.approx(rank(first.weight))
        assert figures["plasticity.weight_rank.2"] == pytest.approx(rank(last.weight))
        never = (features == 0).all(0).double().mean().item()
        assert figures["plasticity.dead_fraction"] == pytest.approx(never)
        assert never >= killed / 12
    before, after = (m.figures["plasticity.feature_rank"] for m in monitor.history)
    assert after < before


def test_large_weights_are_left_out() -> None:
    """Their singular values would take longer than the rest of a measurement."""
    model = nn.Sequential(nn.Linear(8, 40_000), nn.ReLU(), nn.Linear(40_000, 3))
    monitor = Monitor(model, "cross_entropy", data=(X[:4], Y[:4]), analyses=["gradients"])
    names = set(monitor.measure().figures)
    assert {"plasticity.weight_rank.2", "plasticity.feature_rank"} <= names
    assert "plasticity.weight_rank.0" not in names
