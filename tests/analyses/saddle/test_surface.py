"""`saddle`, `taylor` and `step` against closed forms, dense spectra and identities."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from curvcli import analyse
from curvcli.analyses.saddle.result import SaddleResult
from curvcli.analyses.shared.settings import resolve_target
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.shared.verdict import Evidence, classify
from curvcli.analyses.step.result import StepResult
from curvcli.analyses.taylor.result import TaylorResult
from curvcli.errors import CurvError, LossError, OutputError, UsageError
from curvcli.linalg.solve import conjugate_gradients, minres
from curvcli.linalg.stochastic.quadrature import gauss_rule, integrate
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Strategy
from curvcli.operators.curvature.gauss_newton import GaussNewton
from tests.conftest import MakeObjective
from tests.oracles.dense import MEANS, dense_hessian, dense_hessian_of, random_data, random_network


class Point(nn.Module):
    """Parameters that are a point; the loss is a function of it."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))


def surface(start: list[float], function, offset: float = 0.0, scale: float = 1.0) -> Objective:  # type: ignore[no-untyped-def]
    """L(w) = scale · (function(w) + offset), one batch that is only a number."""
    return objective_of(
        Point(start),
        [Batch(None, 1, splittable=False)],
        lambda model, _: (scale * (function(model.w) + offset), 1.0),
    )


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


def load(path: Path, **flags: object) -> Subject:
    spec, _ = resolve_target(str(path), dict(flags), ("saddle",))
    return Subject(spec)


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
            model, [Batch(((x.double(),), {}, target), 12)], _terms(loss), weight_decay=decay
        )
        result = verdict_of(objective)
        counts[result.verdict] = counts.get(result.verdict, 0) + 1
        eigenvalues = torch.linalg.eigvalsh(torch.func.hessian(value)(theta)).numpy()
        norm = np.abs(eigenvalues).max()
        gradient = float(torch.func.grad(value)(theta).norm())
        rho = gradient**2 / (2 * norm * float(value(theta)))
        # Between 0.9 and 1.1 of a threshold either side is right.
        if result.verdict == "not-stationary":
            assert rho > 0.9e-3
        else:
            assert rho < 1.1e-3
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


def _terms(loss: str):  # type: ignore[no-untyped-def]
    from curvcli.loading.loss import loss_terms

    return loss_terms(loss, {})


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
    from curvcli.loading.loss import loss_terms

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


def test_classify_holds_the_table() -> None:
    def evidence(stationarity: float, ends: tuple[float, float, float, float]) -> Evidence:
        low, high, lower, upper = ends
        return Evidence(stationarity, 1e-3, True, low, high, lower, upper, 1e-6, 1e-3)

    cases = [
        ((-1.0, 2.0, -1.1, 2.1), "strict-saddle"),
        ((0.5, 2.0, 0.4, 2.1), "local-minimum"),
        ((-2.0, -0.5, -2.1, -0.4), "local-maximum"),
        ((1e-9, 2.0, -1e-5, 2.1), "flat-minimum"),
        ((1e-9, 2.0, -0.1, 2.1), "inconclusive"),
        ((0.0, 0.0, 0.0, 0.0), "inconclusive"),
        ((-1e-7, 2.0, -1e-7, 2.1), "flat-minimum"),
    ]
    for ends, expected in cases:
        assert classify(evidence(0.0, ends)) == expected
        assert classify(evidence(0.1, ends)) == "not-stationary"


# taylor


def model_of(objective: Objective, **options: Any) -> TaylorResult:
    return analyse("taylor", Subject(objective=objective), **options).result


def test_a_quadratic_is_its_own_taylor_model(make_objective: MakeObjective) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(40, 3, generator=generator).double(),
        torch.randn(40, 1, generator=generator).double(),
    )
    result = model_of(
        make_objective(nn.Linear(3, 1).double(), x, y, "mse"),
        direction=["gradient", "random", "newton"],
    )
    for d in result.directions:
        assert d.trusted_to_the_end
        assert d.third_order is None
        assert all(p.error == pytest.approx(0, abs=1e-9) for p in d.points)
    newton = result.directions[2]
    assert newton.best_step is not None
    assert newton.best_step.t == pytest.approx(
        1.0, abs=1e-3
    )  # flat at the optimum: golden sections to √eps
    top = float(torch.linalg.eigvalsh(dense_hessian(nn.Linear(3, 1), x, y, "mse"))[-1])
    assert result.critical_learning_rate == pytest.approx(2 / top, rel=1e-3)


def test_a_cubic_has_the_radius_and_third_order_of_its_closed_form() -> None:
    """L = 1 + w² + w³ at 0, Δ = ±1: the misfit |t³| is a tenth of t² at t = 0.1; ∂³L/∂t³ = 6."""
    result = model_of(
        surface([0.0], lambda w: (w**2 + w**3).sum(), offset=1.0), direction=["top"], points=41
    )
    (d,) = result.directions
    assert d.trust_radius == pytest.approx(0.1, rel=1e-2)  # ten bisections between grid points
    assert d.third_order is not None
    assert abs(abs(d.third_order.value) - 6) <= max(4 * d.third_order.standard_error, 1e-3)
    assert d.curvature_share == 1.0
    tight = model_of(
        surface([0.0], lambda w: (w**2 + w**3).sum(), offset=1.0), direction=["top"], trust=0.01
    )
    assert tight.directions[0].trust_radius == pytest.approx(0.01, rel=1e-2)


def test_the_best_step_on_a_line_is_where_calculus_says() -> None:
    """L = (w² − 1)² from w = 0.5 along −g: the minimum is at w = 1, at a distance of 0.5."""
    (d,) = model_of(
        surface([0.5], lambda w: ((w**2 - 1) ** 2).sum()), direction=["gradient"]
    ).directions
    assert d.best_step is not None
    assert d.best_step.radius == pytest.approx(0.5, abs=2e-3)
    assert d.best_step.change == pytest.approx(-((0.25 - 1) ** 2), rel=1e-4)


def test_the_way_to_another_checkpoint(samples: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    there = load_file(samples / "digits_mlp.safetensors")
    save_file({k: 0.9 * v for k, v in there.items()}, tmp_path / "other.safetensors")
    context = load(samples / "digits_mlp.toml")
    result = analyse("taylor", context, to=str(tmp_path / "other.safetensors")).result
    (d,) = result.directions
    norm = math.sqrt(sum(float(v.double().square().sum()) for v in there.values()))
    assert d.norm == pytest.approx(0.1 * norm, rel=1e-5)
    assert d.points[-1].t == pytest.approx(1.25)
    with pytest.raises(CurvError, match="no file"):
        analyse("taylor", load(samples / "digits_mlp.toml"), to="none.safetensors")
    with pytest.raises(UsageError, match="Did you mean 'gradient'"):
        analyse("taylor", load(samples / "digits_mlp.toml"), direction=["gradiant"])


# step


def steps_of(objective: Objective, **options: Any) -> StepResult:
    return analyse("step", Subject(objective=objective), **options).result


def test_newton_lands_on_the_minimum_of_a_quadratic(make_objective: MakeObjective) -> None:
    """To 1e-6, in one step; the normal equations are the oracle."""
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(60, 5, generator=generator).double(),
        torch.randn(60, 1, generator=generator).double(),
    )
    design = torch.cat([x, torch.ones(60, 1).double()], 1)
    best = float((design @ torch.linalg.lstsq(design, y).solution - y).square().mean())
    result = steps_of(make_objective(nn.Linear(5, 1).double(), x, y, "mse"), damping=0.0, tol=1e-10)
    by_name = {m.name: m for m in result.methods}
    for name in ("newton", "newton-npc", "saddle-free", "gauss-newton"):
        change = by_name[name].true_change
        assert change is not None
        assert result.loss + change == pytest.approx(best, abs=1e-6), name
        assert by_name[name].predicted_change == pytest.approx(change, abs=1e-9)
    for method in result.methods:
        assert method.heads_for_saddle is None
        assert method.true_change is not None
        assert method.true_change < 0


def test_newton_is_attracted_by_the_saddle_and_saddle_free_leaves_it(samples: Path) -> None:
    """The saddle sample, pushed a little along its escape direction."""
    context = load(samples / "saddle.toml", dtype="float64")
    objective = context.objective
    h = torch.stack(list(_hessian_rows(objective)))
    values, vectors = torch.linalg.eigh(0.5 * (h + h.T))
    escape = vectors[:, 0]
    assert values[0] < -0.5
    with objective.moved(0.05 * escape):
        moved = objective_of(copy.deepcopy(objective.model), objective.batches, objective.terms)
    result = steps_of(moved, damping=1e-3)
    by_name = {m.name: m for m in result.methods}
    assert by_name["newton"].heads_for_saddle is True
    assert by_name["newton"].true_change is not None
    assert by_name["newton"].true_change > 0  # back up to the saddle
    assert by_name["saddle-free"].heads_for_saddle is False
    assert by_name["saddle-free"].true_change is not None
    assert by_name["saddle-free"].true_change < 0
    assert by_name["newton-npc"].heads_for_saddle is False
    assert by_name["newton-npc"].status == "negative-curvature"


def _hessian_rows(objective: Objective):  # type: ignore[no-untyped-def]
    from curvcli.operators.curvature.hessian import Hessian

    operator = Hessian(objective)
    for row in torch.eye(operator.n, dtype=torch.float64):
        yield operator.matvec(row)


def test_saved_weights_are_the_step_and_say_what_was_done(samples: Path, tmp_path: Path) -> None:
    path = tmp_path / "stepped.safetensors"
    result = analyse(
        "step", load(samples / "digits_mlp.toml"), method=["gauss-newton"], save=str(path)
    ).result
    after = load(samples / "digits_mlp.toml", checkpoint=str(path)).objective.loss
    (taken,) = result.methods
    assert taken.true_change is not None
    assert after == pytest.approx(result.loss + taken.true_change, rel=1e-5)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["method"] == "gauss-newton"
    assert len(metadata["from_sha256"]) == 64
    with pytest.raises(OutputError):
        analyse(
            "step",
            load(samples / "digits_mlp.toml"),
            method=["gradient"],
            save="/nowhere/x.safetensors",
        )
    with pytest.raises(UsageError, match="Did you mean 'newton'"):
        analyse("step", load(samples / "digits_mlp.toml"), method=["newtom"])


def test_tied_weights_are_saved_once(samples: Path, tmp_path: Path) -> None:
    path = tmp_path / "stepped.safetensors"
    analyse("step", load(samples / "bytes_gpt.toml"), method=["gradient"], save=str(path), pairs=2)
    assert load(samples / "bytes_gpt.toml", checkpoint=str(path)).objective.loss < 1.5422


def test_gauss_newton_is_left_out_where_outputs_are_unknown() -> None:
    objective = surface([1.0, 2.0], lambda w: (w**2).sum())
    context = Subject(objective=objective)
    answer = analyse("step", context)
    result = answer.result
    assert "gauss-newton" not in {m.name for m in result.methods}
    assert any("gauss-newton is left out" in n for n in answer.notes)
    with pytest.raises(LossError, match="outputs and the loss apart"):
        steps_of(objective, method=["gauss-newton"])


@pytest.mark.parametrize("loss", sorted(MEANS))
@pytest.mark.parametrize("strategy", ["keep", "rebuild"])
def test_gauss_newton_products_against_the_dense_matrix(
    loss: str, strategy: Strategy, make_objective: MakeObjective
) -> None:
    """G = Jᵀ H_out J with J and H_out by forward-mode differentiation, in float64."""
    model = random_network(0, [3, 4, 2], "tanh").double()
    x, y = random_data(0, 9, 3, 2, loss)
    y = y.double() if y.is_floating_point() else y
    named = list(model.named_parameters())
    theta = torch.cat([p.detach().reshape(-1) for _, p in named])

    def outputs(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for _, p in named])
        weights = {n: part.view_as(p) for (n, p), part in zip(named, parts, strict=True)}
        out: Tensor = torch.func.functional_call(model, weights, (x.double(),))
        return out

    j = torch.func.jacfwd(outputs)(theta).reshape(-1, len(theta))
    z = outputs(theta)
    inner = torch.func.hessian(lambda f: MEANS[loss](f.view_as(z), y))(z.reshape(-1))
    operator = GaussNewton(
        make_objective(model, x.double(), y, loss, splits=[4, 5]), strategy=strategy
    )
    products = torch.stack([operator.matvec(e) for e in torch.eye(operator.n, dtype=torch.float64)])
    assert torch.allclose(products, j.T @ inner @ j, atol=1e-12)


# linear systems and quadrature


class Matrix:
    def __init__(self, a: Tensor) -> None:
        self.a, self.n, self.dtype, self.device = a, len(a), a.dtype, a.device

    def matvec(self, v_N: Tensor) -> Tensor:
        return self.a @ v_N


@given(
    st.lists(st.floats(-5, 5).filter(lambda v: abs(v) > 0.1), min_size=2, max_size=15),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_minres_solves_indefinite_systems_and_sees_negative_curvature(
    values: list[float], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    a = (q * torch.tensor(values, dtype=torch.float64)) @ q.T
    b = torch.randn(n, generator=generator, dtype=torch.float64)
    found = minres(Matrix(a), b, tol=1e-9, max_matvecs=200)
    # The recurrence loses orthogonality: 1e-6 of the right-hand side remains at most.
    assert torch.linalg.vector_norm(b - a @ found.x_N) <= 1e-6 * torch.linalg.vector_norm(b)
    if found.negative_direction_N is not None:
        d = found.negative_direction_N
        assert float(d @ a @ d) <= 1e-9 * float(d @ d)
    if min(values) > 0:
        assert found.negative_direction_N is None
        cg = conjugate_gradients(Matrix(a), b, tol=1e-9)
        assert cg.status == "converged"
        assert torch.allclose(cg.x_N, torch.linalg.solve(a, b), atol=1e-6)
    if max(values) < 0:
        assert conjugate_gradients(Matrix(a), b).status == "negative-curvature"
        assert minres(Matrix(a), b, stop_at_negative_curvature=True).matvecs == 1


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


def test_json_of_all_four_is_strict(samples: Path) -> None:
    from typer.testing import CliRunner

    from curvcli.cli.main import make_app

    for command in ("saddle", "taylor", "step", "backprop"):
        done = CliRunner().invoke(
            make_app(), [command, str(samples / "saddle.toml"), "--format", "json"]
        )
        assert done.exit_code == 0, done.stderr
        envelope = json.loads(done.stdout, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
        assert envelope["command"] == command


def test_dense_oracle_of_this_file() -> None:
    """The dense reference agrees with a closed form: ∇² of ½ wᵀAw is A."""
    a = torch.tensor([[2.0, 1.0], [1.0, -3.0]]).double()
    point = Point([0.3, 0.7])
    h = dense_hessian_of(point, lambda m, p: 0.5 * p["w"] @ a @ p["w"])
    assert torch.allclose(h, a)
