"""`landscape` draws the surface that calculus says, finds what lies on it, and says only what is certain."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import curvcli
from curvcli import analyse
from curvcli.analyses.landscape.result import LandscapeResult
from curvcli.analyses.landscape.scan import coarse_to_fine, grid
from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import CurvError
from curvcli.objective.objective import Objective
from tests.conftest import MakeObjective
from tests.oracles.dense import dense_hessian, random_data, random_network
from tests.oracles.program import ROOT, answer, invoke
from tests.oracles.samples import X50, Y50, small
from tests.oracles.surfaces import load, surface

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")


def seen(objective: Objective, **options: Any) -> LandscapeResult:
    return analyse("landscape", Subject(objective=objective), **options).result


def regression(make_objective: MakeObjective) -> tuple[Objective, torch.Tensor]:
    """A linear regression in float64, and its Hessian by another way."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 4, generator=generator).double()
    y = torch.randn(48, 1, generator=generator).double()
    model = nn.Linear(4, 1).double()
    return make_objective(model, x, y, "mse"), dense_hessian(model, x, y, "mse")


def test_a_quadratic_is_a_quadratic_along_every_direction(make_objective: MakeObjective) -> None:
    """The curve is L + s t + κ t²/2 to rounding, convex, and the model right as far as was looked."""
    objective, hessian_NN = regression(make_objective)
    for name in ("random", "eigen", "gradient", "bottom"):
        result = seen(objective, along=[name])
        (axis,) = result.axes
        # Rounding of the sums over 48 samples in float64.
        for p in result.curve:
            assert p.loss is not None
            truth = result.loss + axis.slope * p.t + axis.curvature * p.t**2 / 2
            assert p.loss == pytest.approx(truth, rel=1e-12)
            assert p.model == pytest.approx(truth, rel=1e-12)
        assert result.bend.convex
        assert result.quadratic is not None
        assert result.quadratic.wrong_from is None
        far = max(p.distance for p in result.curve)
        assert result.quadratic.right_to == pytest.approx(far)
    values = torch.linalg.eigvalsh(hessian_NN)
    assert axis.curvature == pytest.approx(float(values[0]), rel=1e-3)


def test_level_sets_of_a_quadratic_map(make_objective: MakeObjective) -> None:
    """Along two eigenvectors the map is separable, with the dense eigenvalues as curvatures."""
    objective, hessian_NN = regression(make_objective)
    result = seen(objective, along=["eigen"], dims=2, points=9)
    assert result.map is not None
    assert result.quadratic is not None
    values = torch.linalg.eigvalsh(hessian_NN).flip(0)[:2].tolist()
    # The eigenvectors are converged to a residual of 1e-2, which bounds the error of their eigenvalues.
    assert [a.curvature for a in result.axes] == pytest.approx(values, rel=1e-2)
    assert result.quadratic.mixed == pytest.approx(0, abs=1e-8 * values[0])
    for j, y in enumerate(result.map.y):
        for i, x in enumerate(result.map.x):
            truth = result.loss + sum(
                a.slope * t + a.curvature * t**2 / 2
                for a, t in zip(result.axes, (x, y), strict=True)
            )
            assert result.map.loss[j][i] == pytest.approx(truth, rel=1e-8)
    assert result.bend.convex


def test_second_differences_at_the_centre_are_eigenvalues() -> None:
    """Of a trained network in float64, O(h²) off; and slope and curvature are those of `taylor`."""
    subject = load(ROOT / "sample_models" / "digits_mlp.toml", dtype="float64")
    top = analyse("hessian", subject, top=1, bottom=0, tol=1e-8).result.top[0]
    h = 1e-4
    result = analyse("landscape", subject, along=["eigen"], radius=h, points=5, refine=0).result
    around = {round(p.t / h, 3): p.loss for p in result.curve if p.loss is not None}
    second = (around[1.0] + around[-1.0] - 2 * around[0.0]) / h**2
    # The eigenvector is converged to 1e-2, its Rayleigh quotient to the square of that.
    assert second == pytest.approx(top.value, rel=1e-3)
    (line,) = analyse("taylor", subject, direction=["top"]).result.directions
    assert abs(result.axes[0].slope) == pytest.approx(abs(line.slope), rel=1e-2)
    assert result.axes[0].curvature == pytest.approx(line.curvature, rel=1e-3)


def test_an_even_function_has_an_even_curve() -> None:
    """L(w) = cos w₁ + w₂² at 0: the same losses to both sides, to rounding."""
    objective = surface([0.0, 0.0], lambda w: torch.cos(w[0]) + w[1] ** 2, offset=2.0)
    result = seen(objective, along=["eigen"], dims=2, points=9, radius=2.0)
    assert result.map is not None
    losses = np.array(result.map.loss, dtype=float)
    assert np.allclose(losses, losses[::-1, ::-1], rtol=1e-14)


def test_a_double_well_is_no_minimum_at_its_ridge() -> None:
    """L = (w² − 1)² at 0.1 along the gradient: the minimum at 1 lies 0.9 away, and the ridge bends downwards."""
    result = seen(surface([0.1], lambda w: ((w**2 - 1) ** 2).sum()), along=["gradient"], radius=2.0)
    assert result.lowest is not None
    assert result.lowest.lower
    # Gaps of 1/6 that six points halve three times to each side.
    assert result.lowest.distance == pytest.approx(0.9, abs=1 / 6 / 2**4)
    assert result.lowest.change == pytest.approx(-(0.99**2), rel=1e-3)
    assert not result.bend.convex
    # The ridge lies 1 above the chord between the minima at ±1, less where points lie beside them.
    assert 0.95 < result.bend.above_chord <= 1.0


def test_the_model_of_a_cubic_fails_where_it_says() -> None:
    """L = 1 + w² + w³ at 0: the misfit |t³| is a tenth of t² at |t| = 0.1, approached from both sides."""
    result = seen(
        surface([0.0], lambda w: (w**2 + w**3).sum(), offset=1.0), along=["eigen"], refine=60
    )
    quadratic = result.quadratic
    assert quadratic is not None
    assert quadratic.wrong_from is not None
    assert quadratic.right_to <= 0.1 <= quadratic.wrong_from
    assert quadratic.wrong_from - quadratic.right_to < 0.01


def test_the_model_of_a_saddle_is_judged_by_its_terms() -> None:
    """L = x² − y² + x³: on the diagonal the terms cancel; x³ is a tenth of x² + y² on the first axis at 0.1 first."""
    objective = surface([0.0, 0.0], lambda w: w[0] ** 2 - w[1] ** 2 + w[0] ** 3, offset=1.0)
    result = seen(objective, along=["eigen", "bottom"], radius=0.36, points=9)
    assert result.quadratic is not None
    assert result.quadratic.wrong_from is not None
    assert result.quadratic.right_to <= 0.1 <= result.quadratic.wrong_from
    assert result.quadratic.right_to > 0.05


def test_a_curve_is_finer_where_it_bends() -> None:
    """A kink at w = 1.3 between straight arms: the points that refinement adds lie in the gaps around it."""
    objective = surface([1.0], lambda w: (torch.relu(w - 1.3) * 10 + 1e-3 * w).sum())
    result = seen(objective, along=["bottom"], radius=1.0, refine=24)
    places = sorted(abs(p.t) for p in result.curve if p.t * result.axes[0].slope >= 0)
    kink = next(i for i, t in enumerate(places) if t > 0.3)
    # A curve is left alone where a straight line is off by less than half a percent of its height.
    assert places[kink] - places[kink - 1] <= (1 / 12) / 4
    assert places[1] - places[0] == pytest.approx(1 / 12)


def test_rescaled_layers_have_the_same_curve() -> None:
    """W₁ · 4 and W₂ / 4 of a ReLU network: filters keep their part of the weights, so the losses are the same."""
    x, y = random_data(3, 64, 4, 3, "cross_entropy")
    curves = []
    for factor in (1.0, 4.0):
        model = random_network(2, [4, 8, 3], "relu").double()
        named = dict(model.named_parameters())
        with torch.no_grad():
            named["0.weight"].mul_(factor)
            named["0.bias"].mul_(factor)
            named["2.weight"].div_(factor)
        result = curvcli.landscape(model, "cross_entropy", (x.double(), y), refine=0).result
        curves.append([p.loss for p in result.curve])
    assert curves[0] == pytest.approx(curves[1], rel=1e-10)


def test_a_barrier_between_two_wells(tmp_path: Path) -> None:
    """L = (w² − 1)² between −1 and 1: height 1 in the middle; and none where the way is convex."""
    model = nn.Linear(1, 1, bias=False).double()
    other = copy.deepcopy(model)
    model.weight.data.fill_(-1.0)
    other.weight.data.fill_(1.0)
    torch.save(other.state_dict(), tmp_path / "b.pt")

    def wells(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = ((m(batch) ** 2 - 1) ** 2).mean()
        return value

    found = curvcli.landscape(
        model, None, torch.ones(32, 1).double(), objective=wells, to=[str(tmp_path / "b.pt")]
    )
    (barrier,) = found.result.barriers
    assert barrier.height == pytest.approx(1.0, rel=1e-12)
    assert barrier.position == 0.5
    assert found.headline is not None
    assert found.headline.level == "attention"
    assert "barrier of at least" in found.headline.sentence
    assert [f.rule for f in found.findings] == ["landscape.barrier"]
    bowl = curvcli.landscape(
        model, None, torch.ones(32, 1).double(), to=[str(tmp_path / "b.pt")],
        objective=lambda m, b: ((m(b) - 3) ** 2).mean(),
    )  # fmt: skip
    assert bowl.result.barriers[0].height == pytest.approx(0, abs=1e-12)
    assert bowl.headline is not None
    assert "No barrier" in bowl.headline.sentence


def _series(folder: Path) -> list[str]:
    """Checkpoints θ + (k, k²) along two drawn directions."""
    weights = load_file(ROOT / "sample_models" / "digits_mlp.safetensors")
    a, b = ({k: 0.01 * torch.randn(v.shape) for k, v in weights.items()} for _ in "ab")
    names = []
    for k in (3, 2, 1):
        path = folder / f"step_{3 - k}.safetensors"
        save_file({n: w + k * a[n] + k**2 * b[n] for n, w in weights.items()}, path)
        names.append(str(path))
    return names


def test_the_path_of_a_series_lies_in_its_plane(tmp_path: Path) -> None:
    """Weights in two directions: all variance in two components; the last point is the target itself, at the origin."""
    _series(tmp_path)
    code, found = answer("landscape", MLP, "--along", "pca", "--to", str(tmp_path), "--points", "5")
    assert code == 0
    result = found["result"]
    assert sum(result["variance_shares"]) == pytest.approx(1.0, abs=1e-6)
    assert [m["name"] for m in result["marks"]] == [*(f"step_{k}.safetensors" for k in range(3)), "here"]  # fmt: skip
    assert result["marks"][-1]["place"] == [0, 0]
    longest = max(math.hypot(*m["place"]) for m in result["marks"])
    # float32 weights: the Gram matrix has their squares.
    assert all(m["off"] < 1e-3 * longest for m in result["marks"])
    assert result["marks"][-1]["loss"] == pytest.approx(result["loss"])


def test_the_plane_through_three_checkpoints(tmp_path: Path) -> None:
    """Losses at the marks are those of the checkpoints themselves."""
    first, second, _ = _series(tmp_path)
    options = ("--to", first, "--to", second, "--points", "5", "--dtype", "float64")
    result = answer("landscape", MLP, *options)[1]["result"]
    assert [a["low"] <= 0 for a in result["axes"]] == [True, True]
    for mark, path in zip(result["marks"][1:], (first, second), strict=True):
        spec = load(Path(MLP), checkpoint=path, dtype="float64")
        assert mark["loss"] == pytest.approx(spec.objective.loss, rel=1e-9)
    assert len(result["barriers"]) == 3


def test_the_step_of_adam_is_that_of_torch(tmp_path: Path) -> None:
    """The last step that torch made is the one that its saved moments say; slope and length are those of that move."""
    model = small().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X50.double()), Y50).backward()
        optimizer.step()
    move = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "o.pt")
    loss = nn.functional.cross_entropy(model(X50.double()), Y50)
    gradient = nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))
    (axis,) = curvcli.landscape(
        model, "cross_entropy", (X50.double(), Y50), along=["adam"], optimizer=str(tmp_path / "o.pt")
    ).result.axes  # fmt: skip
    assert axis.norm == pytest.approx(float(move.norm()), rel=1e-9)
    assert axis.slope == pytest.approx(float(move @ gradient), rel=1e-9)


def test_the_second_data_set_is_that(tmp_path: Path) -> None:
    """The loss at the weights on other data is that of a target with these data."""
    data = dict(np.load(ROOT / "sample_models" / "digits.npz"))
    np.savez(tmp_path / "other.npz", **{k: v[:50] for k, v in data.items()})
    other = str(tmp_path / "other.npz")
    result = answer("landscape", MLP, "--other-data", other, "--points", "5")[1]["result"]
    here = next(p for p in result["curve"] if p["t"] == 0)
    assert here["other_loss"] == pytest.approx(load(Path(MLP), data=other).objective.loss, rel=1e-6)


def test_time_that_is_up_gives_a_part() -> None:
    """After some points: null for the others, complete false; what was looked at is the same."""
    whole = analyse("landscape", load(Path(MLP)), dims=2, points=9, refine=0).result
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 40

    part = analyse("landscape", load(Path(MLP)), Journal(interrupted=stop), dims=2, points=9)
    assert not part.complete
    assert part.result.missing > 0
    assert whole.map is not None
    assert part.result.map is not None
    pairs = [
        (a, b)
        for row, other in zip(part.result.map.loss, whole.map.loss, strict=True)
        for a, b in zip(row, other, strict=True)
    ]
    assert 9 <= sum(a is not None for a, _ in pairs) < 81
    assert all(a == b for a, b in pairs if a is not None)


def test_the_grid_as_arrays(tmp_path: Path) -> None:
    """The same numbers as the JSON; another command has no grid, and says so before it computes."""
    path = tmp_path / "grid.npz"
    assert invoke("landscape", MLP, "--dims", "2", "--points", "5", "-o", str(path)).exit_code == 0
    result = answer("landscape", MLP, "--dims", "2", "--points", "5")[1]["result"]
    with np.load(path) as arrays:
        assert arrays["loss"].tolist() == result["map"]["loss"]
        assert arrays["axes"].tolist() == ["random 1", "random 2"]
    refused = invoke("info", MLP, "-o", str(path))
    assert refused.exit_code == 2
    assert "no grid" in refused.stderr


def test_nan_is_a_hole_and_is_said() -> None:
    """log(w) beyond 0."""
    objective = surface([1.0], lambda w: (w - torch.log(w)).sum())
    found = analyse("landscape", Subject(objective=objective), along=["random"], radius=3.0)
    assert found.result.nonfinite > 0
    assert "landscape.nonfinite" in [f.rule for f in found.findings]
    assert json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--along", "pca", "--to", "near.safetensors"], "at least two checkpoints"),
        (["--along", "pca", "--along", "eigen"], "chooses all directions"),
        (["--along", "adam"], "no state of an optimizer"),
        (["--along", "gradient", "--dims", "2"], "needs two directions"),
        (["--along", "eigen", "--along", "gradient", "--along", "adam"], "two directions, not 3"),
        (["--along", "eigne"], "Did you mean 'eigen'"),
        (["--radius", "-1"], "above 0"),
        (["--optimizer", "x.pt"], "for --along adam only"),
        (["--to", str(ROOT / "sample_models" / "digits_mlp.safetensors")], "is zero"),
        (["--to", str(ROOT / "sample_models" / "saddle.safetensors")], "fits the model"),
    ],
)
def test_wrong_input_gets_the_sentence_that_helps(options: list[str], words: str) -> None:
    done = invoke("landscape", MLP, *options)
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_network_without_second_directions_says_so() -> None:
    with pytest.raises(CurvError, match="not so many directions"):
        seen(surface([1.0], lambda w: (w**2).sum()), along=["eigen"], dims=2)


def test_grids_hold_zero_and_are_looked_at_from_coarse_to_fine() -> None:
    assert 0.0 in grid(-0.25, 1.25, 25)
    assert sorted(coarse_to_fine(25)) == list(range(25))
    assert coarse_to_fine(25)[:4] == [0, 8, 16, 24]
