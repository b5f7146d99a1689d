"""Small data and a network of fixed numbers."""

import torch
from torch import Tensor, nn

from curvcli.loading.loss import loss_terms
from curvcli.objective.batch import Batch
from curvcli.objective.checks import make_objective as objective_of
from curvcli.objective.objective import Objective
from tests.oracles.dense import random_network

# Six samples of three classes.
X, Y = (
    torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 1, 2, 0, 1, 2]),
)
# Fifty more, and a network for them.
X50 = torch.randn(50, 4, generator=torch.Generator().manual_seed(5))
Y50 = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(6))


def small() -> nn.Sequential:
    """Four inputs, five hidden units, three classes."""
    return random_network(7, [4, 5, 3], "tanh")


def objective_for(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Objective:
    """The mean loss over the data, in the dtype of the model."""
    dtype = next(model.parameters()).dtype
    y = y.to(dtype) if y.is_floating_point() else y
    return objective_of(model, [Batch(((x.to(dtype),), {}, y), len(x))], loss_terms(loss, {}))
