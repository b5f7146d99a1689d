"""What shapes do not tell is found by trying it on the data: the network that made the targets has the lowest loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from curvcli.errors import ModelError
from curvcli.loading.checkpoints.formats import open_checkpoint
from curvcli.loading.models.forms import take_best_form
from curvcli.loading.models.guess import PlainNetwork, build_auto
from curvcli.loading.models.model import load_weights
from curvcli.loading.spec import TargetSpec


class Convolutional(nn.Module):
    """Written by hand: tanh, max-pooling by 2, no padding; the forms know nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6 * 1 * 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.tanh(self.a(x)), 2)
        x = nn.functional.max_pool2d(torch.tanh(self.b(x)), 2)
        y: Tensor = self.fc(x.flatten(1))
        return y


def plain(model: nn.Module, folder: Path) -> PlainNetwork:
    save_file(model.state_dict(), folder / "w.safetensors")
    checkpoint = open_checkpoint(folder / "w.safetensors")
    network = build_auto(checkpoint, {})
    assert isinstance(network, PlainNetwork)
    load_weights(network, checkpoint)
    return network


def test_the_form_of_the_true_network_is_found(tmp_path: Path) -> None:
    """Targets are the true network's outputs, so that its own form alone has a loss of zero."""
    torch.manual_seed(1)
    true = Convolutional()
    x = torch.randn(32, 1, 12, 12)
    with torch.no_grad():
        y = true(x)
    network = plain(true, tmp_path)
    told = take_best_form(network, TargetSpec(data="d.npz", loss="mse"), ((x,), {}, y))
    assert network.form == ("tanh", 2, 1, 0)
    assert told is not None
    assert "max-pooling by 2" in told
    with torch.no_grad():
        assert torch.allclose(network(x), y, atol=1e-6)


def test_what_is_given_is_kept_and_no_guess(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    network = plain(model, tmp_path)
    given = TargetSpec(model_args={"activation": "relu"}, data="d.npz", loss="mse")
    assert take_best_form(network, given, None) is None
    assert network.form.activation == "relu"
    assert "not tried" in str(take_best_form(network, TargetSpec(), None))


def test_a_guess_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    """Data of another width: no form takes it."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    data: Any = ((torch.randn(8, 3),), {}, torch.randn(8, 2))
    with pytest.raises(ModelError, match="none of 7 plain networks"):
        take_best_form(plain(model, tmp_path), TargetSpec(data="d.npz", loss="mse"), data)
