"""`curvcli compare` and `curvcli track` on checkpoints whose differences are known."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from curvcli.analyses.compare.between import moved, principal_cosines
from curvcli.analyses.registry import get
from curvcli.analyses.shared.targets import resolve_targets, step_of
from curvcli.errors import CheckpointError, UsageError
from curvcli.linalg.stochastic.probes import deflated_trace
from curvcli.loading.settle import read_settled
from curvcli.report.data import json_schema
from tests.oracles.matrices import OUTLIERS, Prescribed
from tests.oracles.program import ROOT, answer, in_terminal, invoke, run

MLP = str(ROOT / "sample_models" / "digits_mlp.toml")
LINEAR = str(ROOT / "sample_models" / "linear_regression.toml")


@pytest.fixture
def other(tmp_path: Path, samples: Path) -> Path:
    """The linear regression with its weight moved by 0.1 in its first entry."""
    tensors = load_file(samples / "linear_regression.safetensors")
    name = next(n for n in tensors if n.endswith("weight"))
    tensors[name][0, 0] += 0.1
    save_file(tensors, tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


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
    found = moved(a, b)
    assert [m.name for m in found] == ["weight", "bias"]
    assert found[0].distance / found[0].before == pytest.approx(0.5, rel=1e-6)
    assert found[0].cosine == pytest.approx(1, abs=1e-6)


@pytest.fixture
def series(tmp_path: Path, samples: Path) -> Path:
    """Ten steps of gradient descent of the linear regression, every second one saved."""
    folder = tmp_path / "series"
    folder.mkdir()
    with np.load(samples / "breast_cancer.npz") as archive:
        data = dict(archive)
    x, y = torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"]).float().reshape(-1, 1)
    tensors = load_file(samples / "linear_regression.safetensors")
    names = sorted(tensors)  # bias, weight
    for step in range(11):
        if step % 2 == 0:
            save_file(tensors, folder / f"step_{step}.safetensors")
        rest = x @ tensors[names[1]].T + tensors[names[0]] - y
        tensors[names[1]] = tensors[names[1]] - 0.01 * 2 / len(x) * (rest.T @ x)
        tensors[names[0]] = tensors[names[0]] - 0.01 * 2 * rest.mean(0)
    return folder


def test_a_series_against_its_closed_form(series: Path, samples: Path) -> None:
    """Constant Hessian (2/N) [X 1]ᵀ [X 1]: eigenvalues 2.66e-4 … 26.56, its trace, and 2/lr."""
    with np.load(samples / "breast_cancer.npz") as archive:
        data = dict(archive)
    design = np.concatenate([data["x"], np.ones((len(data["x"]), 1))], 1).astype(np.float64)
    matrix = 2 / len(design) * design.T @ design
    expected = np.linalg.eigvalsh(matrix)
    code, envelope = answer(
        "track", LINEAR, str(series), "--lr", "0.08", "--dtype", "float64", "--probes", "12"
    )
    assert code == 0
    jsonschema.validate(envelope, json_schema(get("track").result))
    points = envelope["result"]["points"]
    assert [p["step"] for p in points] == [0, 2, 4, 6, 8, 10]
    for point in points:
        for name, value in (("lambda_max", expected[-1]), ("lambda_min", expected[0])):
            assert abs(point[name]["value"] - value) <= point[name]["residual"]
        assert point["reach"]["upper"] >= expected[-1]
        assert point["reach"]["lower"] <= expected[0]
        # Five standard errors from 12 probes.
        trace = point["trace"]
        assert abs(trace["value"] - np.trace(matrix)) <= 5 * trace["standard_error"]
        assert point["edge"] == "at"  # 26.56 against 25
    assert [p["warm"] for p in points] == [False, True, True, True, True, True]
    losses = [p["loss"] for p in points]
    assert losses == sorted(losses, reverse=True)
    above = answer("track", LINEAR, str(series), "--lr", "0.2", "--probes", "0")[1]
    assert {p["edge"] for p in above["result"]["points"]} == {"above"}
    assert above["findings"][0]["rule"] == "track.edge-above"


def test_warm_starts_need_fewer_products_for_the_same_answer(series: Path) -> None:
    def products(*flags: str) -> tuple[int, list[float]]:
        points = answer("track", LINEAR, str(series), "--probes", "0", *flags)[1]["result"][
            "points"
        ]
        return sum(p["matvecs"] for p in points[1:]), [p["lambda_max"]["value"] for p in points]

    (warm, values), (scratch, others) = products(), products("--no-warm")
    assert warm < scratch
    assert values == pytest.approx(others, rel=1e-4)


def test_one_bad_checkpoint_is_a_finding_and_the_rest_are_reported(series: Path) -> None:
    path = series / "step_4.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    done = invoke("track", LINEAR, str(series), "--probes", "0", "--format", "ndjson")
    assert done.exit_code == 0
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert [p["step"] for p in points] == [0, 2, 4, 6, 8, 10]
    assert [p["error"] is None for p in points] == [True, True, False, True, True, True]
    assert "truncated" in points[2]["error"]["message"]
    assert "step_4.safetensors" in done.stderr
    code, envelope = answer("track", LINEAR, str(series), "--probes", "0", "--strict")
    assert code == 1
    assert [f["rule"] for f in envelope["findings"]] == ["track.bad-checkpoint"]
    assert envelope["result"]["failed"] == 1
    assert "cannot be read" in invoke("track", LINEAR, str(series), "--probes", "0").stdout


def test_a_series_with_nothing_in_it_is_an_error(tmp_path: Path) -> None:
    done = invoke("track", LINEAR, str(tmp_path))
    assert done.exit_code == 2
    assert "no checkpoint with a step number" in done.stderr
    done = invoke("track", LINEAR, "none_1.pt", "none_2.pt")
    assert done.exit_code == 2
    assert "there is no file" in done.stderr


def test_lines_come_as_the_series_goes_on(series: Path) -> None:
    """In a real pipe the first line is there while the process is still running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "curvcli", "track", LINEAR, str(series), "--probes", "12", "--format", "ndjson"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert first["step"] == 0
    assert process.poll() is None
    rest = process.communicate(timeout=60)[0]
    assert [json.loads(line)["step"] for line in rest.splitlines()] == [2, 4, 6, 8, 10]
    assert process.returncode == 0


def test_track_and_compare_in_a_terminal(series: Path, other: Path) -> None:
    code, shown = in_terminal("track", LINEAR, str(series), "--lr", "0.08", "--probes", "0")
    assert code == 0
    assert "Sharpness over training" in shown
    code, shown = in_terminal("compare", LINEAR, str(other), "--analysis", "hessian")
    assert code == 0
    assert "Layers that moved" in shown
    assert "\x1b" not in run("compare", LINEAR, str(other), "--analysis", "hessian").stdout


@pytest.mark.parametrize(
    ("name", "step"),
    [("step_100.safetensors", 100), ("epoch=3-step=400.ckpt", 400), ("checkpoint-500", 500),
     ("model_7_of_run_3.pt", 3), ("run2/last.pt", None), ("iter0012.bin", 12)],
)  # fmt: skip
def test_steps_in_names(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_targets_take_the_settings_of_the_file_before_them(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('checkpoint = "a.pt"\nmodel = "m:A"\n')
    (tmp_path / "b.toml").write_text('checkpoint = "b.pt"\nmodel = "m:B"\n')
    named = resolve_targets(["a.toml", "c.pt", "b.toml", "d.pt"], {}, (), "many")
    shown = [(Path(str(n.spec.checkpoint)).name, n.spec.model) for n in named]
    assert shown == [("a.pt", "m:A"), ("c.pt", "m:A"), ("b.pt", "m:B"), ("d.pt", "m:B")]
    pair = resolve_targets(["a.toml", "c.pt", "d.pt"], {}, (), "pair")
    assert [n.spec.checkpoint for n in pair] == ["c.pt", "d.pt"]
    with pytest.raises(UsageError, match="two targets are compared, not 3"):
        resolve_targets(["a.pt", "b.pt", "c.pt"], {}, (), "pair")


def test_shards_in_a_directory_are_no_series(tmp_path: Path) -> None:
    for i in (1, 2):
        (tmp_path / f"model-0000{i}-of-00002.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="no checkpoint with a step number"):
        resolve_targets([str(tmp_path)], {}, (), "series")


def test_the_deflated_trace_is_exact_where_the_eigenvectors_are_all_known() -> None:
    op = Prescribed(np.arange(1.0, 9.0))
    found = deflated_trace(
        op, torch.eye(8, dtype=torch.float64)[-3:], [6.0, 7.0, 8.0], 4, torch.Generator()
    )
    # A diagonal matrix and random signs: every sample is the trace of the rest.
    assert found is not None
    assert found.value == pytest.approx(36, rel=1e-12)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_the_error_of_the_trace_is_right() -> None:
    """Of 200 seeded runs 90 to 98 % lie within two standard errors (8 probes: Student's t gives 91.5 %)."""
    op = Prescribed(OUTLIERS[-60:], rotate=True)
    truth, within = op.eigenvalues.sum(), 0
    for seed in range(200):
        start = torch.eye(op.n, dtype=torch.float64)[:1]
        value = float(start[0] @ op.matvec(start[0]))
        generator = torch.Generator().manual_seed(seed)
        found = deflated_trace(op, start, [value], 8, generator)
        assert found is not None
        assert found.standard_error is not None
        within += abs(found.value - truth) <= 2 * found.standard_error
    assert 0.86 * 200 <= within <= 0.97 * 200


def test_a_checkpoint_that_is_being_written_is_waited_for(tmp_path: Path, samples: Path) -> None:
    whole = (samples / "digits_mlp.safetensors").read_bytes()
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole[:1000])

    def write() -> None:
        with path.open("ab") as file:
            for first in range(1000, len(whole), 20_000):
                time.sleep(0.2)
                file.write(whole[first : first + 20_000])
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    code, envelope = answer("info", str(path))
    writer.join()
    assert code == 0
    assert envelope["result"]["parameters"] == 17226
    assert envelope["result"]["nonfinite"] == 0


def test_a_checkpoint_that_never_settles_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(save({"x": torch.ones(3)}))
    sizes = iter(range(1, 1000))

    def read() -> bytes:
        path.write_bytes(b"x" * next(sizes))
        return path.read_bytes()

    with pytest.raises(CheckpointError, match="still being written"):
        read_settled(path, read, patience=0.6)


def test_a_checkpoint_that_changes_after_it_was_opened_is_never_half_read(
    tmp_path: Path, samples: Path
) -> None:
    import curvcli

    path = tmp_path / "m.safetensors"
    path.write_bytes((samples / "digits_mlp.safetensors").read_bytes())
    context = curvcli.load(MLP, checkpoint=str(path))
    assert context.target.checkpoint is not None
    path.write_bytes((samples / "digits_mlp.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="changed while it was read"):
        _ = context.target.model


def test_only_layers_that_moved_are_listed(tmp_path: Path) -> None:
    weights = load_file(ROOT / "sample_models" / "digits_mlp.safetensors")
    weights["out.bias"] = weights["out.bias"] + 0.01
    save_file(weights, tmp_path / "b.safetensors")
    answered = run("compare", MLP, str(tmp_path / "b.safetensors")).stdout
    shown = answered.split("Layers that moved")[1]
    assert "out.bias" in shown
    assert "fc1" not in shown
    assert "5 parameters did not move." in " ".join(shown.split())
