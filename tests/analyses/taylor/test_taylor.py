"""`taylor` gives the model, its radius and its best step that calculus gives."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from curvcli import analyse
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.taylor.result import TaylorResult
from curvcli.errors import CurvError, UsageError
from curvcli.objective.objective import Objective
from tests.conftest import MakeObjective
from tests.oracles.dense import dense_hessian
from tests.oracles.surfaces import load, surface


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
