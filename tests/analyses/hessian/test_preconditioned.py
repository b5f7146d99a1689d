"""`hessian --matrix preconditioned` is D^(-1/2) H D^(-1/2), whatever the learning rates of groups."""

from pathlib import Path

import pytest
import torch
from torch import nn

import curvcli
from tests.oracles.mixture import dense


def test_rates_of_groups_change_the_limit_and_not_the_matrix(tmp_path: Path) -> None:
    """Against the dense matrix and Adam's own state; the limit is that of the largest rate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 1).double()
    groups = [
        {"params": list(model[i].named_parameters(prefix=str(i))), "lr": rate}
        for i, rate in ((0, 1e-3), (2, 1e-2))
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    for _ in range(15):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "w.pt"
    )
    torch.save({"x": x, "y": y}, tmp_path / "d.pt")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))\n"
    )
    subject = curvcli.load(
        str(tmp_path / "w.pt"), model=f"{tmp_path}/net.py:build", data=str(tmp_path / "d.pt"), loss="mse",
        dtype="float64",
    )  # fmt: skip
    answer = curvcli.analyse("hessian", subject, matrix="preconditioned", top=3, bottom=1)
    parameters = list(model.parameters())
    diagonal = torch.cat([
        (optimizer.state[p]["exp_avg_sq"] / (1 - 0.99**15)).sqrt().flatten() + 1e-8 for p in parameters
    ])  # fmt: skip
    hessian = dense((model(x) - y).square().mean(), parameters)
    scaled = hessian / diagonal.sqrt()[:, None] / diagonal.sqrt()
    values = torch.linalg.eigvalsh(scaled).flip(0)
    found = [p.value for p in answer.result.top]
    assert found == pytest.approx(values[:3].tolist(), rel=1e-6)
    known = answer.result.preconditioner
    assert known is not None
    assert known.learning_rate == pytest.approx(1e-2)
    # 2 (1 + β₁) / ((1 − β₁) lr)
    assert known.stability_threshold == pytest.approx(2 * 1.9 / (0.1 * 1e-2))
    assert any("rates of their own" in note for note in answer.notes)
