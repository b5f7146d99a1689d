"""`track` holds λ of the parameters that the optimizer moves against its limit, with its spread over the data."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.analyses.track.test_series import tracked


def saved(
    place: Path,
    x: Tensor,
    groups: Any,
    kind: type = torch.optim.SGD,
    steps: int = 5,
    **settings: Any,
) -> dict[str, Any]:
    """What `track` says of a linear regression on ``x`` that was saved after the first step and the last."""
    torch.manual_seed(0)
    y, model = torch.randn(len(x), 1), nn.Linear(3, 1)
    optimizer = kind(groups(model), **settings)
    (place / "run").mkdir()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        if step in (1, steps):
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**content, "global_step": step}, place / "run" / f"step_{step}.pt")
    return tracked(place / "run", (x, y), place)


def hessian(x: Tensor) -> Tensor:
    """2/N XᵀX of weights and bias."""
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    return 2 / len(x) * design.T @ design


def test_a_frozen_parameter_does_not_count(tmp_path: Path) -> None:
    """Only the bias is trained: its curvature is 2, that of all parameters is nearly twenty times as large."""
    torch.manual_seed(1)
    x = 4 * torch.randn(64, 3)
    found = saved(tmp_path, x, lambda m: [m.bias], lr=0.1, momentum=0.9)
    point = found["result"]["points"][-1]
    assert float(torch.linalg.eigvalsh(hessian(x))[-1]) > 35
    assert point["sharpness_ratio"] == pytest.approx(2 * 0.1 / 3.8, rel=1e-4)
    assert point["edge"] == "below"
    assert point["lambda_max"]["value"] > 35, "the table is of all parameters"
    notes = [n for n in found["notes"] if "parameters that the optimizer moves" in n]
    assert len(notes) == 1, "once for all checkpoints"
    assert "step_1.pt" in notes[0]
    assert "step_5.pt" in notes[0]


def test_rates_of_groups_weigh_the_curvature(tmp_path: Path) -> None:
    """λ of diag(r)H by a dense matrix, r the rates in units of the first."""
    torch.manual_seed(2)
    x = torch.randn(64, 3) + 1
    found = saved(
        tmp_path, x, lambda m: [{"params": [m.weight], "lr": 0.1}, {"params": [m.bias], "lr": 0.02}],
        momentum=0.9,
    )  # fmt: skip
    rates = torch.tensor([1, 1, 1, 0.2]).double()
    truth = float(torch.linalg.eigvals(rates[:, None] * hessian(x)).real.max())
    assert found["result"]["points"][-1]["sharpness_ratio"] == pytest.approx(
        truth * 0.1 / 3.8, rel=1e-2
    )


def test_what_cannot_be_told_is_bounded_by_all_parameters(tmp_path: Path) -> None:
    """Gradient descent keeps no state: λ of some of the parameters is at most that of all, and above nothing."""
    torch.manual_seed(1)
    x = 4 * torch.randn(64, 3)
    points = saved(tmp_path, x, lambda m: [m.bias], lr=0.1)["result"]["points"]
    assert points[-1]["sharpness_ratio"] > 1.3
    assert points[-1]["edge"] == "undecided"


def test_the_edge_is_left_open_where_data_leave_it_open(tmp_path: Path) -> None:
    """Few of the samples bend the loss much more than the others: the edge lies within the spread.

    Where all samples are alike λ is certain, and above.
    """
    signs = torch.tensor([[1.0, 1, 1], [1, -1, 1], [1, 1, -1], [-1, 1, 1]]).repeat(16, 1)
    alike, apart = tmp_path / "alike", tmp_path / "apart"
    alike.mkdir()
    apart.mkdir()
    rate = 1.5 * 2 / float(torch.linalg.eigvalsh(hessian(signs))[-1])
    point = saved(alike, signs, lambda m: m.parameters(), lr=rate)["result"]["points"][-1]
    assert point["edge"] == "above"
    torch.manual_seed(3)
    heavy = signs * torch.where(torch.rand(64, 1) < 0.1, 10.0, 0.1)
    rate = 1.5 * 2 / float(torch.linalg.eigvalsh(hessian(heavy))[-1])
    point = saved(apart, heavy, lambda m: m.parameters(), lr=rate)["result"]["points"][-1]
    low, high = point["sharpness_ratio_interval"]
    assert point["sharpness_ratio"] == pytest.approx(1.5, rel=1e-2)
    assert low < 1.3
    assert high > 1.5
    assert point["edge"] == "undecided"


def test_adam_is_not_judged_in_its_first_steps(tmp_path: Path) -> None:
    """After one step √v̂ is the gradient of one batch; after 10/(1 − β₁) steps it is that of many."""
    torch.manual_seed(4)
    x = torch.randn(64, 3)
    found = saved(
        tmp_path, x, lambda m: m.parameters(), torch.optim.AdamW, steps=100, lr=1.0, eps=1e-8
    )
    first, last = found["result"]["points"]
    assert first["edge"] == "undecided"
    assert last["edge"] != "undecided"
    assert [n for n in found["notes"] if "few steps" in n] == [
        f"{first['checkpoint']}: Adam has taken few steps: λ/limit is no measure of stability yet"
    ]
