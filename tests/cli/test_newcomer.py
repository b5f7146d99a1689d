"""The first minutes of somebody new: a network, its weights and data, and what commonly stands in the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracles.program import answer, invoke

CODE = """
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self{arguments}):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(36, 10)

    def forward(self, x):
        return self.fc(F.relu(F.max_pool2d(self.conv(x), 2)).flatten(1))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: Path) -> Path:
    """The working directory of a training that has ended: train.py, model.pt and digits.npz with two parts."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    with np.load(samples / "digits.npz") as archive:
        x = archive["x"].reshape(-1, 1, 8, 8)[:200].astype(np.float32)
        y = archive["y"][:200]
    np.savez("digits.npz", x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    return tmp_path


def written(folder: Path, arguments: str = "") -> None:
    """The network, and fresh weights of it."""
    (folder / "train.py").write_text(CODE.format(arguments=arguments), "utf-8")
    torch.manual_seed(0)
    weights = {
        "conv.weight": 0.3 * torch.randn(4, 1, 3, 3), "conv.bias": torch.zeros(4),
        "fc.weight": 0.1 * torch.randn(10, 36), "fc.bias": torch.zeros(10),
    }  # fmt: skip
    torch.save(weights, folder / "model.pt")


ASKED = ("init", "model.pt", "--model", "train.py:Net", "--data", "digits.npz", "--loss", "cross_entropy")  # fmt: skip


def test_three_commands_lead_to_the_first_answer(place: Path) -> None:
    """What is missing is said with the flag for it, which takes the inputs that belong to it; then all works."""
    sentence = answer(*ASKED)[1]["verdict"]["sentence"]
    assert (
        "--target-key y_train (inputs: x_train) or --target-key y_test (inputs: x_test)" in sentence
    )
    code, made = answer(*ASKED, "--target-key", "y_test", "--force")
    assert code == 0
    assert made["result"]["sanity"]["class_counts"] == list(
        np.bincount(np.load("digits.npz")["y_test"], minlength=10)
    )
    assert answer("gradients", "model.toml")[0] == 0
    assert answer("hessian", "model.toml", "--top", "2", "--bottom", "0")[0] == 0


def test_the_only_part_of_the_data_is_taken_without_a_word(place: Path) -> None:
    """x_val and y_val alone, also cut into batches."""
    data = np.load("digits.npz")
    np.savez("digits.npz", x_val=data["x_test"], y_val=data["y_test"], classes=np.arange(10))
    code, made = answer("gradients", *ASKED[1:], "--batch-size", "20")
    assert code == 0
    assert made["target"]["samples"] == 50


def images(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def make(_: Path) -> None:
        data = np.load("digits.npz")
        np.savez("digits.npz", x=change(data["x_test"]), y=data["y_test"])

    return make


def labels(_: Path) -> None:
    data = np.load("digits.npz")
    np.savez("digits.npz", x=data["x_test"], y=data["y_test"].astype(np.float32))


def nameless(_: Path) -> None:
    data = np.load("digits.npz")
    torch.save(torch.tensor(data["x_test"]), "digits.pt")


def data_set(_: Path) -> None:
    x = torch.rand(4, 1, 8, 8)
    torch.save(torch.utils.data.TensorDataset(x, torch.arange(4)), "digits.pt")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            images(lambda x: (16 * x).astype(np.uint8)),
            "save them as float32, scaled as in training",
        ),
        (images(lambda x: x[:, 0]), "x[:, None] adds the axis of one channel"),
        (images(lambda x: x.transpose(0, 2, 3, 1)), "x.transpose(0, 3, 1, 2) moves the last axis"),
        (labels, "y.astype('int64')"),
        (nameless, "np.savez('data.npz', x=x, y=y)"),
        (data_set, "TensorDataset objects; save tensors alone, torch.save((x, y), 'digits.pt')"),
        (lambda folder: written(folder, ", classes"), "--model-arg classes=VALUE"),
    ],
)
def test_what_stands_in_the_way_is_said_with_what_mends_it(
    place: Path, make: Callable[[Path], None], words: str
) -> None:
    """The first line of `init` has the remedy, how the file takes it, and the next command."""
    make(place)
    asked = [
        ("digits.pt" if a == "digits.npz" and Path("digits.pt").exists() else a) for a in ASKED
    ]
    told = answer(*asked)[1]["verdict"]["sentence"]
    assert words in told
    assert told.endswith("then: curvcli gradients model.toml")


def test_a_whole_model_is_asked_for_its_weights(place: Path) -> None:
    """torch.save(model) needs code to be loaded; the sentence names the class and the line that saves weights."""
    torch.save(torch.nn.Linear(2, 2), "model.pt")
    told = invoke(*ASKED).stderr
    assert "it makes torch.nn.modules.linear.Linear objects" in told
    assert "torch.save(model.state_dict(), 'model.pt')" in told


def test_training_on_import_is_recognised_by_the_file_it_writes(place: Path) -> None:
    """A train.py without a guard writes model.pt again while it is looked at."""
    code = Path("train.py").read_text("utf-8")
    again = "\nimport time, torch\ntime.sleep(0.02)\ntorch.save(Net().state_dict(), 'model.pt')\n"
    Path("train.py").write_text(code + again, "utf-8")
    told = invoke("gradients", *ASKED[1:], "--target-key", "y_test").stderr
    assert "put the training under if __name__ == '__main__'" in told
