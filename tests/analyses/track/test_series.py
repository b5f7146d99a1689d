"""`track` takes order, learning rate and limit from the checkpoints themselves."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles.program import answer


def trained(
    folder: Path, optimizer_class: type, names: list[str], **settings: Any
) -> tuple[Tensor, Tensor]:
    """A linear regression, saved after every fifth step under the given names; the data beside it."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.randn(40, 1)
    model = nn.Linear(3, 1)
    optimizer = optimizer_class(model.parameters(), **settings)
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        for _ in range(5):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**saved, "global_step": 5 * (index + 1)}, folder / name)
    return x, y


def tracked(folder: Path, data: tuple[Tensor, Tensor], place: Path, *more: str) -> dict[str, Any]:
    torch.save({"x": data[0], "y": data[1]}, place / "data.pt")
    (place / "net.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(3, 1)\n"
    )
    code, found = answer(
        "track", str(folder), "--model", f"{place}/net.py:build", "--data", str(place / "data.pt"), "--loss", "mse",
        "--probes", "0", *more,
    )  # fmt: skip
    assert code == 0, found
    result: dict[str, Any] = found
    return result


def largest(x: Tensor) -> float:
    """λ_max of the mean squared error, by the normal matrix."""
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    return float(torch.linalg.eigvalsh(2 / len(x) * design.T @ design)[-1])


def test_the_step_inside_decides_the_order(tmp_path: Path) -> None:
    """Names that sort the other way round, and averaged and cast copies that are no points."""
    names = ["c.pt", "b.pt", "a.pt", "ema.pt", "a_bf16.pt"]
    data = trained(tmp_path / "run", torch.optim.SGD, names, lr=0.01)
    found = tracked(tmp_path / "run", data, tmp_path)
    assert [p["step"] for p in found["result"]["points"]] == [5, 10, 15]
    assert any("ema.pt" in note and "a_bf16.pt" in note for note in found["notes"])


def test_names_decide_the_order_where_files_say_nothing(tmp_path: Path) -> None:
    """The order of a shell (10 before 2), and a file that is named twice."""
    data = trained(tmp_path / "run", torch.optim.SGD, ["step_2.pt", "step_10.pt"], lr=0.01)
    for name in ("step_2.pt", "step_10.pt"):
        torch.save(torch.load(tmp_path / "run" / name)["model"], tmp_path / "run" / name)
    first, second = (tmp_path / "run" / f"step_{n}.pt" for n in (10, 2))
    found = tracked(first, data, tmp_path, str(second), str(first))
    assert [p["step"] for p in found["result"]["points"]] == [2, 10]
    assert any("is named twice" in note for note in found["notes"])
    alone = tracked(first, data, tmp_path, str(first))
    assert "name the directory of a run" in alone["verdict"]["sentence"]


@pytest.mark.parametrize("own", ["step_0.pt", "step_1.pt", None])
def test_what_stopped_is_looked_into_at_the_last_checkpoint(
    tmp_path: Path, own: str | None
) -> None:
    """The command that is named works, and finds it, whichever checkpoint the target file names, or without one."""
    x, y = torch.randn(40, 3), torch.randn(40, 1)
    torch.save({"x": x, "y": y}, tmp_path / "data.pt")
    (tmp_path / "net.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(3, 1)\n"
    )
    (tmp_path / "run").mkdir()
    for step in (0, 1):
        weights = {"weight": torch.ones(1, 3), "bias": torch.ones(1) + step}
        torch.save(weights, tmp_path / "run" / f"step_{step}.pt")
    target = tmp_path / "run.toml"
    target.write_text(
        f'checkpoint = "run/{own}"\nmodel = "net.py:build"\ndata = "data.pt"\nloss = "mse"\n'
    )
    flags = ("--model", f"{tmp_path}/net.py:build", "--data", str(tmp_path / "data.pt"), "--loss", "mse")  # fmt: skip
    given = (str(target),) if own else flags
    _, found = answer("track", *given, str(tmp_path / "run"), "--probes", "0")
    message = next(f["message"] for f in found["findings"] if f["rule"] == "track.stopped")
    program, *words = shlex.split(message[message.index("'") + 1 : message.rindex("'")])
    assert program == "curvcli"
    _, looked = answer(*words)
    assert [f["message"][:29] for f in looked["findings"] if f["rule"] == "gradients.unmoved"] == [
        "1 of 2 parameters have not mo"
    ]


@pytest.mark.parametrize(
    ("optimizer_class", "settings", "limit"),
    [
        (torch.optim.SGD, {"lr": 0.1}, 2 / 0.1),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, 3.8 / 0.1),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, 3.8 / (2.8 * 0.1)),
    ],
)
def test_the_limit_is_that_of_the_optimizer(
    tmp_path: Path, optimizer_class: type, settings: dict[str, Any], limit: float
) -> None:
    """2/lr, 2(1 + β)/lr and Nesterov's, without --lr; the ratio is λ of the normal matrix over it."""
    data = trained(tmp_path / "run", optimizer_class, ["step_5.pt", "step_10.pt"], **settings)
    point = tracked(tmp_path / "run", data, tmp_path)["result"]["points"][-1]
    assert point["learning_rate"] == settings["lr"]
    assert point["limit"] == pytest.approx(limit)
    assert point["sharpness_ratio"] == pytest.approx(largest(data[0]) / limit, rel=1e-2)


def test_adam_is_judged_by_its_preconditioned_sharpness(tmp_path: Path) -> None:
    """λ of D⁻¹H by a dense matrix, D from the saved second moments, against 2(1 + β₁)/((1 − β₁) lr)."""
    data = trained(tmp_path / "run", torch.optim.AdamW, ["step_5.pt", "step_10.pt"], lr=0.01)
    point = tracked(tmp_path / "run", data, tmp_path)["result"]["points"][-1]
    saved = torch.load(tmp_path / "run" / "step_10.pt")["optimizer"]["state"]
    second = torch.cat([saved[i]["exp_avg_sq"].flatten() for i in (0, 1)]).double()
    d = (second / (1 - 0.999**10)).sqrt() + 1e-8
    design = torch.cat([data[0], torch.ones(40, 1)], 1).double()
    truth = float(torch.linalg.eigvals((2 / 40 * design.T @ design) / d[:, None]).real.max())
    assert point["preconditioned"]["value"] == pytest.approx(truth, rel=1e-2)
    assert point["limit"] == pytest.approx(2 * 1.9 / (0.1 * 0.01))
    assert point["optimizer"] in ("adam", "adamw")


def test_runs_in_subfolders_are_series_of_their_own(tmp_path: Path) -> None:
    """Two folders of checkpoints: two runs, the first point of each moved from nowhere."""
    names = ["step_5.pt", "step_10.pt"]
    data = trained(tmp_path / "runs" / "one", torch.optim.SGD, names, lr=0.01)
    trained(tmp_path / "runs" / "two", torch.optim.SGD, names, lr=0.02)
    points = tracked(tmp_path / "runs", data, tmp_path)["result"]["points"]
    assert [Path(p["run"]).name for p in points] == ["one", "one", "two", "two"]
    assert [p["step"] for p in points] == [5, 10, 5, 10]
    assert [bool(p["moved"]) for p in points] == [False, True, False, True]


def test_a_loss_that_rises_and_a_parameter_that_stops_are_findings(tmp_path: Path) -> None:
    """A rate above the bound, and a bias whose weights are never moved."""
    trained(tmp_path / "run", torch.optim.SGD, ["step_5.pt"], lr=0.01)
    data = trained(tmp_path / "run", torch.optim.SGD, ["step_5.pt", "step_10.pt"], lr=0.01)
    late = torch.load(tmp_path / "run" / "step_10.pt")
    early = torch.load(tmp_path / "run" / "step_5.pt")
    late["model"] = {"weight": early["model"]["weight"], "bias": early["model"]["bias"] + 5}
    torch.save(late, tmp_path / "run" / "step_10.pt")
    found = tracked(tmp_path / "run", data, tmp_path)
    assert {"track.loss-rises", "track.stopped"} <= {f["rule"] for f in found["findings"]}


def test_a_bias_before_a_batchnorm_raises_no_alarm(tmp_path: Path) -> None:
    """It has no gradient in training: it does not count as stopped, nor in the preconditioned sharpness.

    The dense D⁻¹H of all other parameters, by second derivatives in float64, is the truth.
    """
    torch.manual_seed(0)
    x, y = torch.randn(64, 3), torch.arange(64) % 2

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))

    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    (tmp_path / "run").mkdir()
    for step in range(1, 41):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % 20 == 0:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**saved, "global_step": step}, tmp_path / "run" / f"step_{step}.pt")
    torch.save({"x": x, "y": y}, tmp_path / "data.pt")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build():\n"
        "    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))\n"
    )
    code, found = answer(
        "track", str(tmp_path / "run"), "--model", f"{tmp_path}/net.py:build", "--data", str(tmp_path / "data.pt"),
        "--loss", "cross_entropy", "--probes", "0",
    )  # fmt: skip
    assert code == 0
    assert "track.stopped" not in {f["rule"] for f in found["findings"]}
    assert any("0.bias" in note for note in found["notes"])
    last = torch.load(tmp_path / "run" / "step_40.pt")
    eager = build().double().eval()
    eager.load_state_dict(last["model"])
    names = [n for n, _ in eager.named_parameters()]
    kept = [n for n in names if n != "0.bias"]
    state = last["optimizer"]["state"]
    d = torch.cat(
        [
            (state[names.index(n)]["exp_avg_sq"].double() / (1 - 0.999**40)).sqrt().flatten()
            for n in kept
        ]
    )
    parameters = [eager.get_parameter(n) for n in kept]
    loss = F.cross_entropy(eager(x.double()), y)
    g = torch.cat([p.flatten() for p in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [
        torch.cat([h.flatten() for h in torch.autograd.grad(e, parameters, retain_graph=True)])
        for e in g
    ]
    truth = float(torch.linalg.eigvals(torch.stack(rows) / (d + 1e-8)[:, None]).real.max())
    point = found["result"]["points"][-1]
    assert point["preconditioned"]["value"] == pytest.approx(truth, rel=1e-2)  # the default --tol
