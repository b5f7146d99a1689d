"""`step` goes where each method's equations say, on quadratics and away from saddles."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from curvcli import analyse
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.step.result import StepResult
from curvcli.errors import LossError, OutputError, UsageError
from curvcli.objective.checks import make_objective as objective_of
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.hessian import Hessian
from tests.conftest import MakeObjective
from tests.oracles.surfaces import load, surface


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


def test_lbfgs_goes_no_farther_than_its_history_knows(make_objective: MakeObjective) -> None:
    """Where the history would lead twice as far the bounded step falls lower: by 4.0, not by 1.8."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    x, y = torch.randn(60, 6), torch.randint(0, 3, (60,))
    result = steps_of(make_objective(model, x, y), max_matvecs=10)
    (lbfgs,) = [m for m in result.methods if m.name == "lbfgs"]
    assert "bounded" in lbfgs.status
    assert lbfgs.true_change is not None
    assert lbfgs.true_change < -3
