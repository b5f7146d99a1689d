"""Named losses are torch's means times their terms; targets and arguments that do not fit are refused."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvcli import load
from curvcli.errors import DataError, LossError
from curvcli.loading.loss import LOSSES, loss_terms, objective_terms
from tests.conftest import MakeObjective
from tests.oracles.samples import X, Y


def terms(name: str, out: Tensor, y: Tensor, **arguments: object) -> tuple[float, float]:
    total, count = loss_terms(name, arguments)(nn.Identity(), ((out,), {}, y))
    return float(total), count


def test_named_losses_are_torch_means_times_terms() -> None:
    """torch's own mean reductions are the oracle."""
    z, t = torch.randn(6, 3), torch.rand(6, 3)
    for name, mine, theirs in [
        ("cross_entropy", terms("cross_entropy", z, Y), F.cross_entropy(z, Y)),
        (
            "cross_entropy",
            terms("cross_entropy", z, Y, label_smoothing=0.1),
            F.cross_entropy(z, Y, label_smoothing=0.1),
        ),
        (
            "cross_entropy",
            terms("cross_entropy", z, Y, ignore_index=1),
            F.cross_entropy(z, Y, ignore_index=1),
        ),
        ("nll", terms("nll", z.log_softmax(1), Y), F.cross_entropy(z, Y)),
        ("mse", terms("mse", z, t), F.mse_loss(z, t)),
        ("l1", terms("l1", z, t), F.l1_loss(z, t)),
        ("huber", terms("huber", z, t, delta=0.5), F.huber_loss(z, t, delta=0.5)),
        (
            "bce_with_logits",
            terms("bce_with_logits", z, t),
            F.binary_cross_entropy_with_logits(z, t),
        ),
    ]:
        assert mine[0] / mine[1] == pytest.approx(float(theirs), rel=1e-6), name
    probabilities = t / t.sum(1, keepdim=True)
    soft = terms("cross_entropy", z, probabilities)
    assert soft[0] / soft[1] == pytest.approx(float(F.cross_entropy(z, probabilities)), rel=1e-6)


def test_sequences_in_both_layouts() -> None:
    z = torch.randn(2, 5, 3)
    y = torch.randint(0, 3, (2, 5))
    last, first = terms("cross_entropy", z, y), terms("cross_entropy", z.movedim(2, 1), y)
    assert last == pytest.approx(first)
    assert last[1] == 10


@pytest.mark.parametrize(
    ("name", "out", "y", "match"),
    [
        ("cross_entropy", torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 0]), "run from 0 to 3, but the model has 3"),
        ("cross_entropy", torch.randn(6, 3), torch.tensor([0, 1, 2, -1, 0, 0]), "labels run from -1 to 2"),
        ("cross_entropy", torch.randn(6, 3), torch.rand(6), "needs integer labels"),
        ("cross_entropy", torch.randn(6, 3), torch.zeros(5).long(), r"outputs \[6, 3\] and targets \[5\]"),
        ("mse", torch.randn(6, 3), torch.randn(6), "of one shape"),
        ("mse", torch.randn(6, 1), torch.randn(5, 1), "of one shape"),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit(name: str, out: Tensor, y: Tensor, match: str) -> None:
    with pytest.raises(DataError, match=match):
        terms(name, out, y)


def test_axes_of_length_one_are_no_obstacle_and_never_broadcast() -> None:
    z = torch.randn(6, 1)
    assert terms("mse", z, z[:, 0] + 1) == pytest.approx((6.0, 6.0))


def test_unknown_losses_and_arguments(tmp_path: Path) -> None:
    with pytest.raises(LossError, match="Did you mean 'cross_entropy'"):
        loss_terms("cross_entropi", {})
    with pytest.raises(LossError, match="does not take"):
        loss_terms("mse", {"ignore_index": 3})
    assert "output" in LOSSES
    (tmp_path / "lossfile.py").write_text(
        "import torch\ndef mean(o, y): return ((o - y) ** 2).mean()\n"
        "def rows(o, y): return ((o - y) ** 2).sum(1)\n"
        "def pair(o, y): return ((o - y) ** 2).sum(), 3\n"
        "def wrong(o, y): return 1.0\n"
        "def objective(model, batch): return model(batch['a']).sum()\n"
    )
    at = f"{tmp_path}/lossfile.py:"
    z, t = torch.randn(6, 3), torch.randn(6, 3)
    square = float(((z - t) ** 2).sum())
    assert terms(at + "mean", z, t) == pytest.approx((square / 3, 6))
    assert terms(at + "rows", z, t) == pytest.approx((square, 6))
    assert terms(at + "pair", z, t) == pytest.approx((square, 3))
    with pytest.raises(LossError, match="returned float, not a tensor"):
        terms(at + "wrong", z, t)
    total, count = objective_terms(at + "objective")(nn.Linear(2, 1), {"a": torch.ones(5, 2)})
    assert count == 5
    assert total.requires_grad


def test_model_that_returns_its_loss() -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": F.cross_entropy(self.linear(x), labels)}

    model = WithLoss()
    total, count = loss_terms("output", {})(model, ((), {"x": X}, Y))
    assert count == 6
    assert float(total.detach()) / 6 == pytest.approx(
        float(F.cross_entropy(model.linear(X), Y).detach())
    )


def test_class_weights_are_torchs(make_objective: MakeObjective) -> None:
    """The weighted mean of torch.nn.CrossEntropyLoss over all data, however it is divided into batches."""
    model, x, y = nn.Linear(4, 3).double(), torch.randn(20, 4).double(), torch.arange(20) % 3
    weight = [0.5, 1.0, 4.0]
    truth = nn.functional.cross_entropy(model(x), y, torch.tensor(weight).double())
    for splits in ([20], [13, 7]):
        found = make_objective(model, x, y, splits=splits, loss_args={"weight": weight})
        assert found.loss == pytest.approx(float(truth.detach()), rel=1e-12)
    with pytest.raises(DataError, match="3 numbers"):
        make_objective(model, x, y, loss_args={"weight": [1.0]})


def test_a_mean_objective_of_ragged_batches_is_the_mean_over_samples(tmp_path: Path) -> None:
    """Batches of 4 and 1: the mean over five samples, not over two batches, with a note."""
    (tmp_path / "user.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(2, 1)\n\n"
        "def batches():\n    x = torch.arange(10.0).reshape(5, 2)\n    return [x[:4], x[4:]]\n\n"
        "def loss(model, x):\n    return (model(x) ** 2).mean()\n\n"
        "def counted(model, x):\n    return (model(x) ** 2).sum(), len(x)\n",
        "utf-8",
    )
    at = f"{tmp_path}/user.py"
    subject = load(model=f"{at}:build", data=f"{at}:batches", objective=f"{at}:loss")
    objective = subject.objective
    x = torch.arange(10.0).reshape(5, 2)
    assert objective.loss == pytest.approx(float(objective.model(x).detach().square().mean()))
    assert any("weighted" in note for note in subject.notes)
    counted = load(model=f"{at}:build", data=f"{at}:batches", objective=f"{at}:counted")
    assert counted.objective.loss == pytest.approx(
        float(counted.objective.model(x).detach().square().mean())
    )
    assert not any("weighted" in note for note in counted.notes), "it does return (sum, count)"
