"""The gain per layer of `gradients` is that of closed forms and mean-field theory, within its interval."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.gradients.reinit import SCHEMES, reinitialised
from curvcli.analyses.gradients.result import GradientsResult
from curvcli.analyses.shared.subject import Subject
from curvcli.linalg.statistics.trend import MAX_POINTS, theil_sen
from tests.conftest import MakeObjective


def run(model: nn.Module, x: Tensor, y: Tensor, make: MakeObjective) -> GradientsResult:
    return analyse("gradients", Subject(objective=make(model, x, y, "mse"))).result


@pytest.mark.parametrize("gain", [0.5, 0.9, 1.0, 1.3])
def test_orthogonal_linear_network_has_chi_of_the_squared_gain(
    gain: float, make_objective: MakeObjective
) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(*(nn.Linear(24, 24, bias=False) for _ in range(15)))
    for layer in model:
        nn.init.orthogonal_(layer.weight, gain)
    result = run(model, torch.randn(16, 24), torch.randn(16, 24), make_objective)
    assert result.chi == pytest.approx(gain**2, rel=1e-4)
    # The network is exactly geometric: 95 % intervals are as narrow as rounding, for signals both ways.
    assert result.chi_interval == pytest.approx((gain**2, gain**2), rel=1e-3)
    assert result.activation_gain_per_layer_interval == pytest.approx((gain, gain), rel=1e-3)
    assert result.gain_per_layer == pytest.approx(gain, rel=1e-4)
    assert result.depth_gain == pytest.approx(gain**14, rel=1e-4)
    assert result.activation_gain_per_layer == pytest.approx(gain, rel=1e-4)
    low, high = result.depth_gain_interval or (math.inf, 0.0)
    assert low <= result.depth_gain <= high  # type: ignore[operator]


def test_a_pyramid_of_widths_is_no_explosion(make_objective: MakeObjective) -> None:
    """Isometries into larger spaces keep the gradient's norm, though not the RMS of its entries."""
    widths = [2**k for k in range(8, 2, -1)]
    layers = []
    for wide, narrow in itertools.pairwise(widths):
        layer = nn.Linear(wide, narrow, bias=False)
        nn.init.orthogonal_(layer.weight)
        layers.append(layer)
    model: Any = nn.Sequential(*layers)
    result = run(model, torch.randn(16, widths[0]), torch.randn(16, widths[-1]), make_objective)
    assert result.gain_per_layer == pytest.approx(1.0, rel=1e-4)
    first, last = result.layers[0], result.layers[-1]
    assert first.activation_gradient_rms is not None
    assert last.activation_gradient_rms is not None
    assert first.activation_gradient_rms < last.activation_gradient_rms / 3


def mean_field(sigma_w: float, sigma_b: float) -> tuple[float, float]:
    """(q*, χ₁) of a tanh network: Schoenholz et al. 2017, equations 3 and 5, by Gauss-Hermite quadrature."""
    z, weight = np.polynomial.hermite_e.hermegauss(101)
    weight = weight / weight.sum()
    q = 1.0
    for _ in range(2000):
        q = sigma_w**2 * float(weight @ np.tanh(np.sqrt(q) * z) ** 2) + sigma_b**2
    slope = 1 - np.tanh(np.sqrt(q) * z) ** 2
    return q, sigma_w**2 * float(weight @ slope**2)


@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(1.0, 0.3), (1.4, 0.25), (2.0, 0.2), (3.0, 0.5)])
def test_tanh_networks_against_mean_field_theory(
    sigma_w: float, sigma_b: float, make_objective: MakeObjective
) -> None:
    width, depth = 1000, 14
    q, chi = mean_field(sigma_w, sigma_b)
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=sigma_w / width**0.5)
        nn.init.normal_(linear.bias, std=sigma_b)
        layers += [linear, nn.Tanh()]
    # The first layer's outputs already have the variance q* of the fixed point.
    x = torch.randn(8, width) * math.sqrt((q - sigma_b**2) / sigma_w**2)
    result = run(nn.Sequential(*layers), x, torch.randn(8, width), make_objective)
    assert result.chi == pytest.approx(chi, rel=0.05)


@pytest.mark.parametrize("n", [6, 15, 39, 60, 200])
def test_theil_sen_is_that_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    x = np.sort(rng.uniform(size=n))
    y = 2 * x + rng.standard_t(2, n)
    found = theil_sen(list(x), list(y))
    theirs = stats.theilslopes(y, x)
    assert found is not None
    assert found.slope == pytest.approx(theirs.slope, rel=1e-12)
    assert found.interval is not None
    # SciPy rounds the rank of a normal approximation: the ends may differ by some of the pairs' slopes.
    i, j = np.triu_indices(n, 1)
    slopes = np.sort((y[j] - y[i]) / (x[j] - x[i]))
    ranks = np.searchsorted(slopes, [found.interval, (theirs.low_slope, theirs.high_slope)])
    assert np.abs(ranks[0] - ranks[1]).max() <= 2


def test_theil_sen_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(9.0)
    found = [theil_sen(list(x), list(3 * x + rng.standard_cauchy(9))) for _ in range(1500)]
    inside = [t.lower <= 3 <= t.upper for t in found if t and t.lower is not None and t.upper]
    assert len(inside) == 1500
    # Three standard deviations of a binomial around at least 95 %.
    assert np.mean(inside) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 1500)


def test_theil_sen_with_few_many_and_broken_points() -> None:
    assert theil_sen([1.0], [1.0]) is None
    assert theil_sen([1.0, 1.0], [1.0, 2.0]) is None
    two = theil_sen([0.0, 2.0, 3.0], [1.0, 5.0, math.nan])
    assert two is not None
    assert (two.slope, two.interval, two.points) == (2.0, None, 2)
    x = np.arange(10 * MAX_POINTS, dtype=float)
    many = theil_sen(list(x), list(0.5 * x))
    assert many is not None
    assert many.slope == pytest.approx(0.5)
    assert many.points == len(x)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_reinitialised_weights_have_the_scheme_s_variance_and_come_back(
    scheme: str, make_objective: MakeObjective
) -> None:
    torch.manual_seed(2)
    model: Any = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 4))
    objective = make_objective(model, torch.randn(32, 300) + 5, torch.randn(32, 4), "mse")
    before = [t.clone() for t in model.state_dict().values()]
    variance = {
        "xavier": 2 / 500,
        "kaiming": 2 / 300,
        "lecun": 1 / 300,
        "orthogonal": 1 / 300,
        "default": 1 / 900,
    }
    with reinitialised(objective, scheme, 0) as unknown:
        assert unknown == []
        # 60,000 entries: a relative deviation of √(2/60,000) = 0.6 %.
        assert float(model[0].weight.detach().var()) == pytest.approx(variance[scheme], rel=0.03)
        if scheme != "default":
            assert not model[0].bias.any()
        fresh = model[0](torch.cat([b.data[0][0] for b in objective.batches])).detach()
        torch.testing.assert_close(model[1].running_mean, fresh.mean(0))
        assert not model[1].training
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_initialisations_are_ranked_beside_the_checkpoint(make_objective: MakeObjective) -> None:
    """Theory: orthogonal linear layers keep the gradient, PyTorch's default multiplies χ by 1/3 a layer."""
    torch.manual_seed(3)
    model: Any = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))
    # Large targets: the gradient at the output is independent of the weights, as the theory assumes.
    objective = make_objective(model, torch.randn(16, 256), 100 * torch.randn(16, 256), "mse")
    result = analyse(
        "gradients", Subject(objective=objective), reinit="default,orthogonal,lecun", seeds=3
    ).result
    found = {s.name: s for s in result.initialisations}
    names = [s.name for s in result.initialisations]
    assert names[0] == "orthogonal"
    assert names.index("lecun") < names.index("default")
    assert found["orthogonal"].chi.median == pytest.approx(1.0, rel=1e-3)
    assert found["lecun"].chi.median == pytest.approx(1.0, rel=0.15)
    assert found["default"].chi.median == pytest.approx(1 / 3, rel=0.15)
    assert found["checkpoint"].seeds == 1
    assert found["checkpoint"].chi.median == pytest.approx(result.chi)
    assert all(s.lambda_max.median is not None and s.lambda_max.median > 0 for s in found.values())
    assert all(found[n].seeds == 3 for n in ("default", "orthogonal", "lecun"))
