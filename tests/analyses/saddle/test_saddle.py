"""`saddle` calls every point what closed forms and dense spectra say that it is, and never more."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.saddle.result import SaddleResult
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import LossError
from curvcli.loading.loss import loss_terms
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from curvcli.objective.objective import Objective
from tests.conftest import MakeObjective
from tests.oracles.dense import MEANS, dense_hessian, random_data, random_network
from tests.oracles.surfaces import load, surface


def verdict_of(objective: Objective, **options: Any) -> SaddleResult:
    return analyse("saddle", Subject(objective=objective), **options).result


@pytest.mark.parametrize("signs", list(itertools.product([1.0, -1.0, 0.0], repeat=3)))
def test_quadratics_of_every_signature(signs: tuple[float, ...]) -> None:
    """½ wᵀ diag(s) w at 0: what each signature is called, and what it is never called."""
    curvatures = torch.tensor([s * k for s, k in zip(signs, (1.0, 2.0, 5.0), strict=True)]).double()
    result = verdict_of(surface([0.0] * 3, lambda w: 0.5 * (curvatures * w * w).sum(), offset=1.0))
    low, high = min(signs), max(signs)
    if low < 0 < high:
        expected = "strict-saddle"
        assert result.index_at_least == signs.count(-1.0)
    elif low > 0:
        expected = "local-minimum"
    elif high < 0:
        expected = "local-maximum"
    elif low == 0 and high > 0:
        expected = "flat-minimum"
    else:  # nothing but zero, or zero and negative: the second derivative proves no kind
        expected = "inconclusive"
    assert result.verdict == expected


DEGENERATE = {
    "monkey saddle": (lambda w: w[0] ** 3 - 3 * w[0] * w[1] ** 2, 2),
    "x² + y³": (lambda w: w[0] ** 2 + w[1] ** 3, 2),
    "x² − y⁴": (lambda w: w[0] ** 2 - w[1] ** 4, 2),
    "x² + y⁴": (lambda w: w[0] ** 2 + w[1] ** 4, 2),
    "constant": (lambda w: 0 * w.sum(), 3),
    "x⁴ + y⁴": (lambda w: (w**4).sum(), 2),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_points_are_never_called_strict(name: str) -> None:
    function, n = DEGENERATE[name]
    result = verdict_of(surface([0.0] * n, function, offset=1.0))
    assert result.verdict in ("inconclusive", "flat-minimum")
    if name in ("x² + y³", "x² − y⁴"):
        assert result.verdict == "inconclusive"
    if name == "x² + y⁴":
        assert result.verdict == "flat-minimum"


def deep_linear(*weights: Tensor) -> nn.Sequential:
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False).double() for w in weights]
    for layer, w in zip(layers, weights, strict=True):
        layer.weight.data = w.double().clone()
    return nn.Sequential(*layers)


def test_a_deep_linear_network_at_its_known_points(make_objective: MakeObjective) -> None:
    """‖W₂W₁X − Y‖² (Baldi & Hornik 1989): 0 is a saddle; fitting one of two modes too; fitting both a minimum."""
    x = torch.eye(2).double().repeat(10, 1)
    y = x @ torch.diag(torch.tensor([3.0, 1.0])).double()
    d = torch.diag
    fit = d(
        torch.tensor([3.0, 1.0]).double().sqrt()
    )  # to double precision: the loss is 0 to rounding
    points = {
        "origin": (d(torch.zeros(2)), d(torch.zeros(2)), "strict-saddle"),
        "strong mode": (
            d(torch.tensor([3**0.5, 0.0])),
            d(torch.tensor([3**0.5, 0.0])),
            "strict-saddle",
        ),
        "weak mode": (d(torch.tensor([0.0, 1.0])), d(torch.tensor([0.0, 1.0])), "strict-saddle"),
        "both": (fit, fit, "flat-minimum"),
    }
    for name, (first, second, expected) in points.items():
        objective = make_objective(deep_linear(first, second), x, y, "mse")
        assert verdict_of(objective).verdict == expected, name


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    ("name", "expected"), [("saddle", "strict-saddle"), ("digits_mlp", "not-stationary")]
)
def test_samples_whatever_the_scale_of_the_loss(
    name: str, expected: str, scale: float, samples: Path
) -> None:
    target = load(samples / f"{name}.toml").target
    plain = target.terms
    objective = objective_of(
        target.model, target.batches, lambda m, d: ((r := plain(m, d))[0] * scale, r[1])
    )
    result = verdict_of(objective)
    assert result.verdict == expected
    reference = verdict_of(load(samples / f"{name}.toml").objective)
    assert result.stationarity == pytest.approx(reference.stationarity, rel=0.05)
    if expected == "strict-saddle":
        assert result.escape is not None
        assert result.escape.falls
        assert result.region == "indefinite"
        assert result.index_at_least >= 2
        assert all(p.change is not None and p.change < 0 for p in result.escape.walk)
        assert sum(s.share for s in result.escape.shares) == pytest.approx(1, abs=1e-5)


def test_rescaled_parameters_keep_the_verdict() -> None:
    """w -> c w in the argument changes curvature by c², and nothing that is said."""
    for c in (1e-3, 1.0, 1e3):
        function = lambda w, c=c: (1 - (c * w[0]) ** 2) ** 2 + (c * w[1]) ** 2  # noqa: E731
        assert verdict_of(surface([0.0, 0.0], function)).verdict == "strict-saddle"
        assert verdict_of(surface([1 / c, 0.0], function, offset=0.5)).verdict == "local-minimum"


def test_relu_scale_symmetry_is_flat_not_strict(make_objective: MakeObjective) -> None:
    """relu(w₁x) w₂ at a minimum: the direction (w₁, −w₂) costs nothing, so one eigenvalue is zero."""
    net = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    ).double()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(2.0)
    x = torch.linspace(0.1, 1, 20).double()[:, None]
    noise = torch.randn(20, 1, generator=torch.Generator().manual_seed(0)).double()
    noise -= (noise * x).sum() / (x * x).sum() * x  # leaves the least-squares slope at 4
    result = verdict_of(make_objective(net, x, 4 * x + 0.1 * noise, "mse"))
    assert result.verdict == "flat-minimum"
    assert abs(result.lambda_min.value) <= result.floor


@pytest.mark.full
def test_300_random_networks_have_no_wrong_verdict() -> None:
    """Networks trained by a few Newton steps towards whatever critical point is near, against dense spectra."""
    counts: dict[str, int] = {}
    for seed in range(300):
        rng = np.random.default_rng(seed)
        loss = ("mse", "cross_entropy")[seed % 2]
        sizes = [2, int(rng.integers(1, 4)), 2]
        model = random_network(seed, sizes, "tanh", scale=float(rng.choice([0.3, 1.0]))).double()
        x, y = random_data(seed, 12, 2, 2, loss)
        target = y.double() if y.is_floating_point() else y
        decay = float(rng.choice([0.0, 0.05]))

        def value(
            theta: Tensor,
            net: nn.Module = model,
            x: Tensor = x,
            y: Tensor = target,
            loss: str = loss,
            decay: float = decay,
        ) -> Tensor:
            named = list(net.named_parameters())
            parts = theta.split([p.numel() for _, p in named])
            weights = {n: part.view_as(p) for (n, p), part in zip(named, parts, strict=True)}
            out = torch.func.functional_call(net, weights, (x.double(),))
            return MEANS[loss](out, y) + 0.5 * decay * theta.square().sum()

        theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        for _ in range(int(rng.choice([0, 3, 15]))):  # some stay far from stationary
            g = torch.func.grad(value)(theta)
            h = torch.func.hessian(value)(theta)
            values, vectors = torch.linalg.eigh(h)
            # Signed, Newton goes to the nearest critical point; unsigned it goes downhill to a minimum.
            signs = values.sign() if seed % 4 < 2 else torch.ones_like(values)
            move = vectors @ ((vectors.T @ g) / values.abs().clamp_min(1e-6) * signs)
            theta = theta - move * min(1.0, 0.5 / max(float(move.norm()), 1e-300))
        torch.nn.utils.vector_to_parameters(theta, model.parameters())
        objective = objective_of(
            model,
            [Batch(((x.double(),), {}, target), 12)],
            loss_terms(loss, {}),
            weight_decay=decay,
        )
        result = verdict_of(objective)
        counts[result.verdict] = counts.get(result.verdict, 0) + 1
        spectrum = torch.linalg.eigh(torch.func.hessian(value)(theta))
        eigenvalues, vectors = (part.numpy() for part in spectrum)
        norm = np.abs(eigenvalues).max()
        slopes = vectors.T @ torch.func.grad(value)(theta).numpy()
        rho = (slopes**2).sum() / (2 * norm * float(value(theta)))
        decrement = (slopes**2 / (eigenvalues.clip(0) + 1e-5 * norm)).sum()
        promise = 0.5 * decrement / float(value(theta))
        # Between 0.9 and 1.1 of a threshold either side is right.
        if result.newton_promise is not None:
            # The rule's distance from that of half the steps is in it.
            assert 0.99 * promise <= result.newton_promise
        if result.verdict == "not-stationary":
            assert rho > 0.9e-3 or promise > 0.9e-2 or (result.newton_promise or 0) > 1e-2
        else:
            assert rho < 1.1e-3
        if result.verdict in ("local-minimum", "flat-minimum"):
            assert promise < 1.1e-2
        if result.verdict == "strict-saddle":
            assert eigenvalues[0] < 0 < eigenvalues[-1]
            assert (eigenvalues < 0).sum() >= result.index_at_least
        if result.verdict == "local-minimum":
            assert eigenvalues[0] > 0
        if result.verdict == "local-maximum":
            assert eigenvalues[-1] < 0
        if result.verdict == "flat-minimum":
            assert eigenvalues[0] >= -1.1e-3 * norm
    assert counts.get("inconclusive", 0) <= 15, counts
    assert len(counts) >= 3, counts


def test_a_budget_that_is_too_small_is_inconclusive_and_says_how_many_more() -> None:
    """A wide convex spectrum: 6 products prove nothing about its lower end."""
    curvatures = torch.logspace(-3, 0, 400).double()
    objective = surface([0.0] * 400, lambda w: 0.5 * (curvatures * w * w).sum(), offset=1.0)
    few = verdict_of(objective, max_matvecs=6)
    assert few.verdict == "inconclusive"
    assert few.more_products is not None
    enough = verdict_of(objective, max_matvecs=6 + 3 * few.more_products)
    assert enough.verdict in ("local-minimum", "flat-minimum")


def test_the_index_is_estimated_with_its_error(samples: Path) -> None:
    model = random_network(0, [6, 10, 3], "tanh", scale=2.0)
    x, y = random_data(0, 30, 6, 3, "cross_entropy")
    objective = objective_of(model, [Batch(((x,), {}, y), 30)], loss_terms("cross_entropy", {}))
    result = verdict_of(objective, index=True, index_probes=30)
    assert result.index is not None
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(model, x, y, "cross_entropy")).numpy()
    truth = (eigenvalues < result.index.below).sum()
    # Four standard errors: fails once in 15,000.
    assert result.index.standard_error is not None
    assert abs(result.index.value - truth) <= 4 * result.index.standard_error
    assert result.index_at_least <= (eigenvalues < 0).sum()


def test_loss_below_its_floor_is_an_error() -> None:
    with pytest.raises(LossError, match="below its floor"):
        verdict_of(surface([0.0, 0.0], lambda w: w.square().sum(), offset=-1.0))
    result = verdict_of(
        surface([0.0, 0.0], lambda w: w.square().sum(), offset=-1.0), loss_floor=-2.0
    )
    assert result.verdict == "local-minimum"


def test_gradient_noise_is_that_of_the_sample(make_objective: MakeObjective) -> None:
    """mean (w − y_i)²: ∇ = 2 (w − ȳ), with the sampling error 2 std(y)/√N; parts estimate it from 8 means."""
    y = torch.randn(800, 1, generator=torch.Generator().manual_seed(0)).double()
    net = nn.Linear(1, 1, bias=False).double()
    result = verdict_of(make_objective(net, torch.ones_like(y), y, "mse"))
    assert result.gradient_noise is not None
    # The standard deviation of a variance from 8 parts is √(2/7) = 53 %: 3 of those.
    assert result.gradient_noise**2 == pytest.approx(4 * float(y.var()) / 800, rel=1.6)
