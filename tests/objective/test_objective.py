"""Value, gradient and moved points of an objective are those of torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import MakeObjective
from tests.oracles.samples import X, Y


def test_gradient_and_value_are_those_of_torch(make_objective: MakeObjective) -> None:
    net = nn.Linear(4, 3)
    objective = make_objective(net, X, Y, splits=[2, 4], weight_decay=0.3)
    loss = F.cross_entropy(net(X), Y) + 0.15 * sum(p.square().sum() for p in net.parameters())
    loss.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None])
    assert objective.value() == pytest.approx(float(loss.detach()), rel=1e-6)
    assert torch.allclose(objective.gradient(), expected, atol=1e-6)
    assert torch.allclose(objective.gradient(samples=1), expected, atol=1e-6)
    step = torch.ones(objective.n)
    with objective.moved(step):
        moved = objective.value()
    assert moved != objective.value()
    assert objective.value() == pytest.approx(float(loss.detach()), rel=1e-6)
