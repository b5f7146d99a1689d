"""Plain networks are rebuilt from the shapes of their tensors; what is not plain is not guessed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from curvcli.errors import ModelError
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.models.guess import build_auto, recognise
from curvcli.loading.models.model import load_weights
from tests.oracles.checkpoints import stored


class Named(nn.Module):
    """A CNN whose names in alphabetical order are not the order of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 5, padding=2)
        self.bn2 = nn.BatchNorm2d(6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.classifier(x.mean((2, 3)))
        return out


@pytest.mark.parametrize(
    ("model", "example", "kind"),
    [
        (nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), (4, 5), "MLP"),
        (nn.Sequential(*(m for i in range(12) for m in (nn.Linear(4 + i, 5 + i), nn.ReLU())), nn.Linear(16, 2)),
         (3, 4), "MLP"),
        (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)), (4, 5), "MLP"),
        (nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 3, bias=False)), (4, 5), "MLP"),
        (nn.ModuleDict({"z": nn.Linear(5, 7), "a": nn.Linear(7, 3)}), None, "MLP"),
        (Named(), (3, 2, 8, 8), "CNN"),
    ],
)  # fmt: skip
def test_plain_networks_are_rebuilt_exactly(
    model: nn.Module, example: tuple[int, ...] | None, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    checkpoint = open_checkpoint(stored(model, tmp_path))
    guess = recognise(checkpoint)
    assert guess is not None
    assert guess.kind == kind
    built = build_auto(checkpoint, {})
    load_weights(built, checkpoint)
    assert set(built.state_dict()) == set(model.state_dict())
    if example is not None:
        x = torch.randn(example)
        torch.testing.assert_close(built.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    "model",
    [
        nn.LSTM(3, 4),
        nn.Embedding(4, 4),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)),
        nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4, False), "d": nn.PReLU(1)}),
        nn.TransformerEncoderLayer(8, 2),
        nn.Conv1d(2, 3, 3),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_not_guessed(model: nn.Module, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(stored(model, tmp_path))
    assert recognise(checkpoint) is None
    with pytest.raises(ModelError, match="not those of a plain MLP or CNN"):
        build_auto(checkpoint, {})
