"""`compare` says which of two networks is better on the data, by paired losses."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from curvcli.analyses.compare.paired import sharpness_differs
from tests.conftest import MakeObjective
from tests.oracles.program import ROOT, answer, invoke

TARGET, WEIGHTS = (str(ROOT / "sample_models" / f"digits_mlp.{s}") for s in ("toml", "safetensors"))
QUICK = ("--analysis", "gradients", "--subspace", "0", "--points", "3")


def changed(folder: Path, size: float) -> str:
    moved = {k: v + size * torch.randn(v.shape) for k, v in load_file(WEIGHTS).items()}
    save_file(moved, folder / "other.safetensors")
    return str(folder / "other.safetensors")


def test_identical_checkpoints_are_called_identical() -> None:
    """The same file twice: one sentence, and nothing is better."""
    shown = invoke("compare", TARGET, WEIGHTS, WEIGHTS, *QUICK).stdout
    assert "are identical" in shown


def test_rounding_to_bfloat16_makes_neither_better(tmp_path: Path) -> None:
    """The same weights in another precision differ by less than the sampling of the data, or by little."""
    cast = {k: v.bfloat16().float() for k, v in load_file(WEIGHTS).items()}
    save_file(cast, tmp_path / "cast.safetensors")
    _, found = answer("compare", TARGET, WEIGHTS, str(tmp_path / "cast.safetensors"), *QUICK)
    pair = found["result"]["paired"]
    assert not found["result"]["identical"]
    assert abs(pair["difference"]) < 0.01 * found["result"]["line"]["points"][0]["loss"]


def test_worse_weights_are_worse_by_the_difference_of_the_losses(tmp_path: Path) -> None:
    """The difference is that of the losses at both ends of the line, and its error that of paired samples."""
    _, found = answer("compare", TARGET, WEIGHTS, changed(tmp_path, 0.05), *QUICK)
    pair, points = found["result"]["paired"], found["result"]["line"]["points"]
    assert pair["better"] == "a"
    assert abs(pair["difference"] - (points[-1]["loss"] - points[0]["loss"])) < 1e-4
    assert 0 < pair["standard_error"] < pair["difference"] / 3


def test_rounded_weights_are_judged_on_data(tmp_path: Path) -> None:
    """Weights cast to bfloat16 and back: loss and sharpness are judged on paired samples, in either type."""
    torch.manual_seed(0)
    x, y = torch.randn(256, 6), torch.arange(256) % 3
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    torch.save({k: v.bfloat16() for k, v in model.state_dict().items()}, tmp_path / "b.pt")
    torch.save({"x": x, "y": y}, tmp_path / "data.pt")
    asked = (
        "compare", str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), "--model", "auto", "--model-arg", "activation=tanh",
        "--data", str(tmp_path / "data.pt"), "--loss", "cross_entropy",
    )  # fmt: skip
    _, found = answer(*asked)
    rows = {r["path"]: r for r in found["result"]["figures"]}
    assert not found["result"]["identical"]
    assert rows["hessian.loss"]["by"] == rows["hessian.top[0].value"]["by"] == "data"
    assert rows["hessian.loss"]["beyond"] == (found["result"]["paired"]["better"] is not None)
    assert rows["hessian.gradient_norm"]["by"] == "intervals"
    _, cast = answer(*asked, "--dtype", "bfloat16")
    assert cast["result"]["identical"]
    assert "identical in bfloat16" in cast["verdict"]["sentence"]


def test_a_network_that_is_sharper_on_every_sample_is_called_that(
    make_objective: MakeObjective,
) -> None:
    """Twice the weights of a quadratic loss with a scale of its own: group by group four times the curvature."""
    torch.manual_seed(0)
    x, y = torch.randn(200, 3).double(), torch.randn(200, 1).double()
    flat, steep = (
        make_objective(nn.Linear(3, 1).double(), scale * x, y, "mse") for scale in (1.0, 2.0)
    )
    tops = []
    for scale in (1.0, 2.0):
        design = torch.cat([scale * x, torch.ones(200, 1).double()], 1)
        tops.append(torch.linalg.eigh(design.T @ design).eigenvectors[:, -1])
    assert sharpness_differs(flat, steep, (tops[0], tops[1])) is True
    assert sharpness_differs(flat, flat, (tops[0], tops[0])) is False
