"""`compare` says what two checkpoints differ in, where that is known, and nothing where they are the same."""

from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from curvcli.analyses.compare.between import moved, principal_cosines
from curvcli.analyses.registry import get
from curvcli.report.data import json_schema
from tests.oracles.checkpoints import moved_regression
from tests.oracles.program import ROOT, answer, invoke, run

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")
LINEAR = str(ROOT / "sample_models" / "linear_regression.toml")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return moved_regression(tmp_path)


def test_a_checkpoint_compared_with_itself_differs_in_nothing() -> None:
    code, envelope = answer("compare", MLP, MLP)
    assert code == 0
    jsonschema.validate(envelope, json_schema(get("compare").result))
    result = envelope["result"]
    assert not any(f["beyond"] for f in result["figures"])
    assert result["distance"] == 0
    assert result["line"]["connected"]
    assert result["eigenspaces"]["overlap"] == pytest.approx(1, abs=1e-5)
    assert len(result["eigenspaces"]["cosines"]) == 5


def test_a_quadratic_loss_has_the_same_hessian_everywhere(other: Path, samples: Path) -> None:
    """H does not depend on the weights: no eigenvalue differs, the loss does; convex: no barrier."""
    code, envelope = answer(
        "compare", LINEAR, str(other), "--analysis", "hessian", "--dtype", "float64"
    )
    assert code == 0
    result = envelope["result"]
    differing = {f["path"] for f in result["figures"] if f["beyond"]}
    assert {"hessian.loss", "hessian.gradient_norm"} <= differing
    assert not any(path.endswith("].value") for path in differing)
    with np.load(samples / "breast_cancer.npz") as archive:
        data = dict(archive)
    losses = []
    for path in (samples / "linear_regression.safetensors", other):
        weights = {k.rsplit(".", 1)[-1]: v.double().numpy() for k, v in load_file(path).items()}
        predicted = data["x"].astype(float) @ weights["weight"][0] + weights["bias"][0]
        losses.append(((predicted - data["y"].reshape(-1)) ** 2).mean())
    loss = next(f for f in result["figures"] if f["path"] == "hessian.loss")
    assert [loss["a"]["value"], loss["b"]["value"]] == pytest.approx(losses, rel=1e-6)
    assert result["distance"] == pytest.approx(0.1, rel=1e-5)
    assert result["line"]["height"] == 0
    assert result["line"]["connected"]
    moves = {layer["name"]: layer["distance"] for layer in result["layers"]}
    assert sorted(moves.values()) == pytest.approx([0, 0.1], rel=1e-5)
    assert result["eigenspaces"]["overlap"] == pytest.approx(1, abs=1e-8)


def test_permuted_hidden_units_are_the_same_function_behind_a_barrier(tmp_path: Path) -> None:
    """The same network with its hidden units in another order: equal loss and spectrum, but not on a line."""
    tensors = load_file(ROOT / "sample_models/digits_mlp.safetensors")
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    tensors["fc1.weight"], tensors["fc1.bias"] = (
        tensors["fc1.weight"][order],
        tensors["fc1.bias"][order],
    )
    tensors["fc2.weight"] = tensors["fc2.weight"][:, order].contiguous()
    save_file(tensors, tmp_path / "permuted.safetensors")
    code, envelope = answer(
        "compare", MLP, str(tmp_path / "permuted.safetensors"), "--analysis", "hessian"
    )
    assert code == 0
    result = envelope["result"]
    top = next(f for f in result["figures"] if f["path"] == "hessian.top[0].value")
    assert not top["beyond"]
    line = result["line"]
    ends = [p["loss"] for p in line["points"] if p["position"] in (0, 1)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
    # The loss between both by a model of plain functions, on a grid of its own.
    with np.load(ROOT / "sample_models/digits.npz") as archive:
        data = dict(archive)
    x, y = torch.from_numpy(data["x"]).double(), torch.from_numpy(data["y"]).long()
    a = load_file(ROOT / "sample_models/digits_mlp.safetensors")

    def loss(t: float) -> float:
        w = {k: ((1 - t) * a[k] + t * tensors[k]).double() for k in a}
        gelu = nn.functional.gelu
        h = gelu(gelu(x @ w["fc1.weight"].T + w["fc1.bias"]) @ w["fc2.weight"].T + w["fc2.bias"])
        return float(nn.functional.cross_entropy(h @ w["out.weight"].T + w["out.bias"], y))

    heights = [loss(t / 200) - loss(0.0) for t in range(201)]
    assert line["height"] == pytest.approx(max(heights), rel=1e-3)
    assert line["height"] > 100 * line["error"]
    assert not line["connected"]
    assert 0.2 < line["position"] < 0.8
    assert result["eigenspaces"]["overlap"] < 0.9


def test_checkpoints_of_different_models_are_refused(samples: Path) -> None:
    done = invoke("compare", MLP, str(samples / "digits_cnn.toml"))
    assert done.exit_code == 2
    assert "different models" in done.stderr
    assert "two targets are compared, not 1" in invoke("compare", MLP).stderr
    assert "Did you mean 'hessian'" in invoke("compare", MLP, MLP, "--analysis", "hesian").stderr


def test_principal_cosines_of_known_spaces() -> None:
    """Spans of e1, e2 and of cos t e1 + sin t e3, e2: cosines 1 and cos t."""
    t = 0.3
    a = torch.eye(4)[:2]
    b = torch.stack([torch.tensor([np.cos(t), 0, np.sin(t), 0]), torch.eye(4)[1]]).float()
    assert principal_cosines(a, b) == pytest.approx([1, np.cos(t)], abs=1e-6)


def test_moved_layers_are_in_order_of_their_relative_way() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.load_state_dict({"weight": a.weight * 1.5, "bias": a.bias.clone()})
    found = moved(dict(a.named_parameters()), dict(b.named_parameters()))
    assert [m.name for m in found] == ["weight", "bias"]
    assert found[0].distance / found[0].before == pytest.approx(0.5, rel=1e-6)
    assert found[0].cosine == pytest.approx(1, abs=1e-6)


def test_only_layers_that_moved_are_listed(tmp_path: Path) -> None:
    weights = load_file(ROOT / "sample_models" / "digits_mlp.safetensors")
    weights["out.bias"] = weights["out.bias"] + 0.01
    save_file(weights, tmp_path / "b.safetensors")
    answered = run("compare", MLP, str(tmp_path / "b.safetensors")).stdout
    shown = answered.split("Layers that moved")[1]
    assert "out.bias" in shown
    assert "fc1" not in shown
    assert "5 parameters did not move." in " ".join(shown.split())
