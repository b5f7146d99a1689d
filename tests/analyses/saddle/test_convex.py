"""Where the loss is convex in the parameters no direction curves downwards, however few products were made."""

import pytest
import torch
from torch import nn

from curvcli import Subject, analyse
from tests.oracles.samples import X50, Y50, objective_for


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_linear_network_is_convex_after_a_few_products(loss: str, dtype: torch.dtype) -> None:
    """The Hessian of softmax regression is JᵀCJ, whatever the weights; the reach alone does not show it."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(dtype)
    y = Y50 if loss == "cross_entropy" else torch.randn(50, 3)
    result = analyse(
        "saddle", Subject(objective=objective_for(model, X50, y, loss)), max_matvecs=4
    ).result
    assert result.region == "convex"
    assert result.reach.lower >= -1e-4 * result.lambda_max.value


def test_a_network_with_a_hidden_layer_is_not_called_convex() -> None:
    """Seen only where it curves upwards so far: that is no proof."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    objective = objective_for(model, X50, Y50, "cross_entropy")
    result = analyse("saddle", Subject(objective=objective), max_matvecs=3).result
    assert result.region in ("unknown", "indefinite")
