"""Divided weights give the products of whole ones, each process reads and holds its share, and the rest is refused."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from curvcli import Batch, make_objective
from curvcli.loading.loss import loss_terms
from tests.conftest import SAMPLES
from tests.distributed import layers, matrices
from tests.distributed.divided import CASES, LAYERS, MATRICES, case
from tests.distributed.test_command import run, values
from tests.distributed.test_ranks import started


def dense(name: str) -> tuple[float, Tensor, Tensor]:
    """Loss, gradient and Hessian by torch alone, in float64."""
    model, batches = case(name, torch.float64)
    _, _, decay, train = CASES[name]
    model.train(train)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in named.values()]
    theta_N = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def loss(flat_N: Tensor) -> Tensor:
        parts = [x.view_as(p) for x, p in zip(flat_N.split(sizes), named.values(), strict=True)]
        total = sum(
            _sum_of(model, dict(zip(named, parts, strict=True)), batch) for batch in batches
        )
        return torch.as_tensor(
            total / sum(b.size for b in batches) + decay / 2 * flat_N.square().sum()
        )

    g_N = torch.autograd.functional.jacobian(loss, theta_N)
    h_NN = torch.autograd.functional.hessian(loss, theta_N)
    return float(loss(theta_N)), g_N, h_NN


def _sum_of(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> Tensor:
    (inputs, _, targets) = batch.data
    outputs = torch.func.functional_call(model, weights, inputs)
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.full)])
def test_as_of_whole_weights(count: int, tmp_path: Path) -> None:
    """Against dense matrices: loss, gᵀg, gᵀHg, ‖Hg‖², eigenvalues; every process says the same and restores θ."""
    processes = started(count, ["-m", "tests.distributed.divided", str(tmp_path)])
    assert [p.wait(timeout=280) for p in processes] == [0] * count
    found = [json.loads((tmp_path / f"{r}.json").read_text()) for r in range(count)]
    for name in CASES:
        loss, g_N, h_NN = dense(name)
        product_N = h_NN @ g_N
        scalars = [float(a @ b) for a, b in ((g_N, g_N), (g_N, product_N), (product_N, product_N))]
        eigenvalues = torch.linalg.eigvalsh(h_NN).flip(0).numpy()
        wanted = [*eigenvalues[:3], eigenvalues[-1]]
        check_matrices([f[f"{name}, {torch.float64}"] for f in found], name, h_NN, g_N)
        for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            of_ranks = [f[f"{name}, {dtype}"] for f in found]
            check(of_ranks, loss, scalars, wanted, rtol)
            check_vector(of_ranks, name, h_NN, tol=1e-4 if dtype == torch.float32 else 1e-9)
            assert sum(f["length"] for f in of_ranks) == of_ranks[0]["n"] == len(g_N)
    for f in found:
        check_files(f["state"], f["log"])
    reads = [f["reading"] for f in found]
    assert all(r["read"] == r["held"] and r["right"] for r in reads)
    assert sum(r["held"] for r in reads) == reads[0]["n"]


def check_matrices(of_ranks: list[dict[str, Any]], name: str, h_NN: Tensor, g_N: Tensor) -> None:
    """Gauss-Newton and Fisher matrices of one case, and its layers, of which all processes say the same."""
    model, batches = case(name, torch.float64)
    _, _, decay, train = CASES[name]
    objective = make_objective(
        model, batches, loss_terms("cross_entropy", {}), weight_decay=decay, train_mode=train
    )
    first = of_ranks[0]
    assert all(found.get(k) == first.get(k) for found in of_ranks for k in ("matrices", "layers"))
    if name in MATRICES:
        matrices.check(first["matrices"], objective, decay, g_N)
    if name in LAYERS:
        ggn_NN, _ = matrices.dense(objective.model, batches, decay)
        layers.check(first["layers"], objective.model, h_NN, ggn_NN, g_N)


def check_files(state: dict[str, Any], log: dict[str, Any]) -> None:
    """A run goes on from its file to the figures of one go, in all products of both together; nothing else is taken."""
    (values_K, products), (on_K, made) = state["whole"], state["on"]
    # Eigenvalues of two runs are right to the square of the tolerance, 1e-9, and to rounding.
    np.testing.assert_allclose(on_K, values_K, rtol=0, atol=1e-12 * values_K[0])
    assert (state["half"], made) == (products // 2, products)
    assert state["unharmed"]
    assert "cannot be written" in state["full"]
    assert "belongs to another run" in state["other"]
    assert "damaged" in state["damaged"] or "another process cannot" in state["damaged"]
    assert log["on"][0] == log["again"][0] == log["alone"][0]
    # What was torn is the result of a step, whose products are there still.
    assert log["on"][1] == log["alone"][1] - log["first"][1]
    assert log["again"][1] == 0


def check(
    of_ranks: list[dict[str, Any]],
    loss: float,
    scalars: list[float],
    wanted: list[float],
    rtol: float,
) -> None:
    first = of_ranks[0]
    for found in of_ranks:
        assert found["restored"]
        assert all(found[key] == first[key] for key in ("loss", "keep", "rebuild", "values"))
    assert first["loss"] == pytest.approx(loss, rel=rtol)
    for strategy in ("keep", "rebuild"):
        np.testing.assert_allclose(first[strategy], scalars, rtol=rtol, atol=rtol * abs(scalars[2]))
    # Ritz values are right to the square of the tolerance of their residuals.
    np.testing.assert_allclose(first["values"], wanted, rtol=0, atol=rtol * wanted[0])
    assert first["check"] < (1e-2 if rtol > 1e-6 else 1e-6)
    # Weights twice, the vector once, and the product by a sum over all, which sends twice as much.
    assert first["sent"] <= 5


def check_vector(of_ranks: list[dict[str, Any]], name: str, h_NN: Tensor, tol: float) -> None:
    """Put together by the names and shapes of the network, the first eigenvector is one of the dense matrix."""
    model, _ = case(name, torch.float64)
    shapes = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
    for found in of_ranks:
        parts = {n: torch.tensor(v, dtype=torch.float64) for n, v in found["vector"].items()}
        assert {n: v.shape for n, v in parts.items()} == shapes
        v_N = torch.cat([parts[n].reshape(-1) for n in shapes])
        assert float(v_N.norm()) == pytest.approx(1, abs=1e-6)
        # Lanczos ends at this relative residual.
        residual = (h_NN @ v_N - found["values"][0] * v_N).norm()
        assert float(residual) <= tol * found["values"][0]


def by_layer(answer: dict[str, Any]) -> list[float]:
    layers_ = answer["result"]["per_layer"]["layers"]
    return [
        x for s in layers_ for x in (s["lambda_max"]["value"], s["trace"]["value"], *s["shares"], s["parameters"])
    ]  # fmt: skip


def sums(answer: dict[str, Any]) -> list[float]:
    result = answer["result"]
    parts = [t["trace"] for t in result["tensors"]] + list(result["split"].values())
    return [len(parts), result["trace"]["value"], *(part["value"] for part in parts)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("options", "of"),
    [
        (["hessian"], values),
        (
            ["hessian", "--matrix", "ggn", "--per-layer", "--exact-rows", "0", "--top", "2"],
            by_layer,
        ),
        (["hessian", "--matrix", "fisher", "--max-batches", "1", "--batch-size", "50"], values),
        (["trace", "--split"], sums),
    ],
)
def test_the_command(options: list[str], of: Any, tmp_path: Path) -> None:
    """The same figures as of one process, and the same file of vectors."""
    common = [*options, str(SAMPLES / "digits_mlp.toml"), "--format", "json", "--dtype", "float64"]
    files = [tmp_path / "one.safetensors", tmp_path / "several.safetensors"]
    saved = [["--save-vectors", str(f)] if options == ["hessian"] else [] for f in files]
    one = json.loads(run(*common, *saved[0]).stdout)
    several = run(*common, "--ranks", "2", "--shard", *saved[1])
    assert (several.returncode, several.stderr) == (0, "")
    answer = json.loads(several.stdout)
    # One block is divided: its random vectors are those of one process, and sums are off by their order.
    assert of(answer) == pytest.approx(of(one), rel=1e-6)
    assert answer["cost"]["processes"]["count"] == 2
    assert answer["result"]["parameters"] == one["result"]["parameters"]
    if not saved[0]:
        return
    a, b = (load_file(f) for f in files)
    assert {n: v.shape for n, v in a.items()} == {n: v.shape for n, v in b.items()}
    whole = [torch.cat([v.flatten(1) for v in x.values()], 1) for x in (a, b)]
    for first, second in zip(*whole, strict=True):
        # The angle of either to the eigenvector is its residual (1e-3) over the gap at most.
        assert abs(float(first @ second)) == pytest.approx(1, abs=1e-3)


@pytest.mark.timeout(300)
def test_killed_it_goes_on(tmp_path: Path) -> None:
    """All processes at once, in the middle of a run: another one ends with its digits, in less products."""
    state = tmp_path / "state"
    command = ["density", str(SAMPLES / "digits_mlp.toml"), "--shard", "--format", "json"]
    whole = json.loads(run(*command, "--ranks", "2").stdout)
    command += ["--state", str(state)]
    processes = started(
        2, ["-m", "curvcli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 120
    while not (state.exists() and state.stat().st_size > 3_000_000) and time.monotonic() < until:
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.communicate()
    again = json.loads(run(*command, "--ranks", "2").stdout)
    assert again["result"] == whole["result"]
    assert again["cost"]["matvecs"] < whole["cost"]["matvecs"]
    refused = run(*command)
    assert (refused.returncode, refused.stderr.count("error:")) == (2, 1)
    others = run(*command[:2], "--format", "json", "--state", str(state))
    assert others.returncode == 2
    assert "of 2 processes that divided the weights" in " ".join(others.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("hessian",), "this is the only one"),
        (
            ("hessian", "--matrix", "preconditioned"),
            "--matrix preconditioned needs vectors that one process holds",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(arguments: tuple[str, ...], told: str) -> None:
    done = run(arguments[0], str(SAMPLES / "digits_mlp.toml"), *arguments[1:], "--shard")
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())


def test_a_target_file_that_divides_is_refused_by_other_questions(tmp_path: Path) -> None:
    target = tmp_path / "t.toml"
    text = (SAMPLES / "digits_mlp.toml").read_text()
    target.write_text(text.replace('"digits', f'"{SAMPLES}/digits') + "\n")
    target.write_text("shard = true\n" + target.read_text())
    done: subprocess.CompletedProcess[str] = run("backprop", str(target))
    assert done.returncode == 2
    assert "backprop does not work on weights that are divided" in done.stderr
    assert run("info", str(target)).returncode == 0
