"""Data sets as training scripts have them: lists of samples, dicts with paths, targets to ignore, losses as classes."""

from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F

import curvcli
from curvcli.errors import UsageError
from tests.objective.test_kinds import largest

# A script that trains a network, with data in the forms that loops take.
SCRIPT = """
import torch
from torch import nn

torch.manual_seed(0)
x, y = torch.randn(12, 6), torch.arange(12) % 3


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return {"image": x[i], "label": int(y[i]), "path": f"{i}.png", "note": ""}


samples = [(row, int(label)) for row, label in zip(x, y)]
images = Images()
loader = torch.utils.data.DataLoader(Images(), batch_size=5)
ignored = x, torch.where(torch.arange(12) % 3 == 0, -100, y)


class Smoothed(nn.Module):
    def __init__(self, amount=0.0):
        super().__init__()
        self.amount = amount

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=self.amount)
"""


def found(data: str, loss: str = "cross_entropy", **settings: Any) -> Any:
    subject = curvcli.load(model="usual.py:net", data=f"usual.py:{data}", loss=loss, **settings)
    return curvcli.analyse("hessian", subject, top=1, bottom=0, tol=1e-6).result


@pytest.fixture(autouse=True)
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    Path("usual.py").write_text(SCRIPT)
    names: dict[str, Any] = {}
    exec(SCRIPT, names)
    return names


@pytest.mark.parametrize("data", ["samples", "images", "loader"])
def test_samples_and_dicts_with_paths(data: str, usual: dict[str, Any]) -> None:
    """The loss is that of all samples at once: to rounding of float32 in twelve terms."""
    truth = F.cross_entropy(usual["net"]()(usual["x"]), usual["y"])
    assert found(data).loss == pytest.approx(truth.item(), rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"dtype": "float64"}])
def test_a_first_sample_whose_target_is_ignored(
    settings: dict[str, Any], usual: dict[str, Any]
) -> None:
    """λ_max is that of the dense Hessian over the samples that count, and other commands answer too."""
    result = found("ignored", **settings)
    exact = largest(
        usual["net"](), lambda m, d: F.cross_entropy(m(d[0].double()), d[1]), usual["ignored"]
    )
    assert abs(result.top[0].value - exact) <= result.top[0].residual + 1e-6 * exact
    for question in ("gradients", "backprop", "step"):
        subject = curvcli.load(
            model="usual.py:net", data="usual.py:ignored", loss="cross_entropy", **settings
        )
        assert not [f for f in curvcli.analyse(question, subject).findings if f.severity == "error"]


def test_a_class_of_modules_as_loss(usual: dict[str, Any]) -> None:
    truth = F.cross_entropy(usual["net"]()(usual["x"]), usual["y"], label_smoothing=0.2)
    for loss, arguments in (
        ("usual.py:Smoothed", {"amount": 0.2}),
        ("torch.nn:CrossEntropyLoss", {"label_smoothing": 0.2}),
    ):
        result = found("loader", loss, loss_arg=arguments)
        assert result.loss == pytest.approx(truth.item(), rel=1e-6)


def test_one_target_cannot_be_compared() -> None:
    subject = curvcli.load(model="usual.py:net", data="usual.py:loader", loss="cross_entropy")
    with pytest.raises(UsageError, match="two targets are compared"):
        curvcli.analyse("compare", subject)


def test_an_objective_gets_its_batches_as_they_are() -> None:
    """(tensor, number) may be anything there: a count, a weight, a time."""
    with Path("usual.py").open("a") as script:
        script.write("""

weighted = [(x[:4], 2), (x[4:], 5)]


def objective(model, batch):
    rows, weight = batch
    assert rows.dim() == 2
    return weight * model(rows).square().sum(), len(rows)
""")
    subject = curvcli.load(
        model="usual.py:net", data="usual.py:weighted", objective="usual.py:objective"
    )
    assert curvcli.analyse("hessian", subject, top=1, bottom=0).result.top


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match=r"there is no setting .los.\. Did you mean .loss."):
        curvcli.load(model="usual.py:net", los="mse")
