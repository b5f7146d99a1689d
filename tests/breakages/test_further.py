"""Further ways of breaking a training, beyond the ten of the table: the first finding of each, and what it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.breakages.projects import Project, _data, _train, healthy, written
from tests.oracles.program import answer


class Over(nn.Module):
    """Softmax over the samples in place of the classes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(0)


class Always(nn.Module):
    """Dropout that stays on: F.dropout without ``training=self.training``."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.3)


def labels_off_by_one() -> Project:
    project = healthy()
    return project._replace(y=(project.y + 1) % 3)


def rows_shifted() -> Project:
    """Labels of other rows; the classes of the rows are in no order."""
    project = healthy()
    order = torch.randperm(len(project.y), generator=torch.Generator().manual_seed(0))
    x, y = project.x[order], project.y[order]
    return project._replace(x=20 * x, y=y.roll(1))


def ending_in(*more: nn.Module, classes: int = 3) -> Callable[[], Project]:
    def make() -> Project:
        x, y = _data(0, classes=classes)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, classes), *more)
        return Project(model, x, y, _train(model, x, y))

    return make


def with_weights(change: Callable[[Tensor], Any]) -> Callable[[], Project]:
    def make() -> Project:
        project = healthy()
        with torch.no_grad():
            for p in project.model.parameters():
                change(p)
        return project

    return make


def far_too_sure() -> Project:
    """Overfitting: a tenth of the labels of other data are wrong, and the weights of the last layer large."""
    project = healthy()
    y = torch.where(torch.arange(len(project.y)) % 10 == 0, (project.y + 1) % 3, project.y)
    with torch.no_grad():
        project.model.get_parameter("4.weight").mul_(20)
    return project._replace(y=y)


def a_sample_is_nan() -> Project:
    project = healthy()
    project.x[7, 3] = float("nan")
    return project


FURTHER: dict[str, tuple[Callable[[], Project], str, str]] = {
    "labels_off_by_one": (labels_off_by_one, "labels-renamed", "(0 is labelled 1, 1 is labelled 2, 2 is labelled 0)"),
    "rows_shifted": (rows_shifted, "sure-and-wrong", "rows shifted"),
    "relu_at_the_end": (ending_in(nn.ReLU()), "bounded-output", "ends in 3, whose outputs are never negative"),
    "tanh_at_the_end": (ending_in(nn.Tanh()), "bounded-output", "drop the last activation"),
    "sigmoid_at_the_end": (ending_in(nn.Sigmoid()), "bounded-output", "between 0 and 1"),
    "softmax_over_samples": (ending_in(Over(), classes=8), "bounded-output", "over the samples instead of the classes"),
    "decayed_to_nothing": (with_weights(lambda p: p.mul_(1e-6)), "vanishing-depth", "lower the weight decay"),
    "zero_weights": (with_weights(lambda p: p.zero_()), "dead-layer", "are all zero; initialise them at random"),
    "far_too_sure": (far_too_sure, "overconfident", "far too sure where it is wrong"),
    "a_sample_is_nan": (a_sample_is_nan, "nonfinite", "'x' of sample 7 is nan"),
}  # fmt: skip


@pytest.mark.parametrize("name", FURTHER)
def test_the_cause_comes_first(name: str, tmp_path: Path) -> None:
    """In `gradients`, and in words in `check`; nothing blames training where data or outputs are the cause."""
    make, rule, words = FURTHER[name]
    target = written(make(), tmp_path)
    _, found = answer("gradients", target)
    first = found["findings"][0]
    assert first["rule"] == f"gradients.{rule}"
    assert words in first["message"]
    _, checked = answer("check", target, "--no-cache")
    assert any(words in f["message"] for f in checked["findings"])
    if rule == "bounded-output":
        assert not any("initial weights" in f["message"] for f in found["findings"])


def test_labels_of_other_names_are_no_matter_of_the_learning_rate(tmp_path: Path) -> None:
    """`track` sees the loss rise from start to end, and names the labels first."""
    _, found = answer(
        "track", written(labels_off_by_one(), tmp_path), str(tmp_path / "run"), "--probes", "0"
    )
    grave = [f for f in found["findings"] if f["severity"] != "note"]
    assert grave[0]["rule"] == "track.suspicious"
    assert "labels off by one" in found["verdict"]["sentence"]
    assert not any("learning rate" in f["message"] for f in grave)


def test_a_loss_that_is_random_is_said_once(tmp_path: Path) -> None:
    """All rules that need the loss fail for one reason, and the first line has it, with what mends it."""
    target = written(ending_in(Always())(), tmp_path)
    code, found = answer("check", target, "--no-cache")
    assert code == 2
    assert [f["rule"] for f in found["findings"]] == ["check.error"]
    assert "5 of 6 rules cannot be decided: the loss is random" in found["verdict"]["sentence"]
    assert "F.dropout with training=self.training" in found["verdict"]["sentence"]


def test_nan_in_the_data_is_no_overflow(tmp_path: Path) -> None:
    """What mends it is other data, not another type."""
    _, found = answer("hessian", written(a_sample_is_nan(), tmp_path))
    assert found["error"]["hint"] == "clean the data"
