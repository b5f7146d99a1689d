"""The parts of the data are compared by the products of their gradients run alone, whatever uses the weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvcli.operators.signals.gradient_flow import flow
from tests.conftest import MakeObjective


class Tokens(nn.Module):
    """Everything a language model does with its weights, and some that others do."""

    def __init__(self, positions: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8, padding_idx=3)
        self.scale = nn.Parameter(torch.randn(8))
        self.kind = positions
        if positions == "embedding":
            self.positions: Any = nn.Embedding(12, 8)
        else:
            self.positions = nn.Parameter(torch.randn(1, 12, 8))
        self.norm, self.rms = nn.LayerNorm(8), nn.RMSNorm(8)
        self.mix = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Any:
        t = x.shape[1]
        z = self.positions(torch.arange(t)) if self.kind == "embedding" else self.positions[:, :t]
        y = self.embed(x) + z
        y = y + self.scale * torch.tanh(self.norm(y))
        y = y + self.mix(self.rms(y).transpose(1, 2)).transpose(1, 2)
        return self.head(y)


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, dilation=2, bias=False, padding=2), nn.GroupNorm(2, 6), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4),
    )  # fmt: skip


class ByHand(nn.Module):
    """A weight that is used by an operator, beside a layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.layer(x)) @ self.layer.weight)


class Turned(nn.Module):
    """A linear layer as GPT-2 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(6, 4)), nn.Parameter(torch.empty(4))

    def forward(self, x: Tensor) -> Any:
        y = torch.addmm(self.bias, x.view(-1, 6), self.weight)
        return y.view(*x.shape[:-1], 4)[:, 0]


class TimeFirst(nn.Module):
    """The first axis inside is time, which is as long as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x.transpose(0, 1)).cumsum(0)
        return self.head(torch.tanh(y).transpose(0, 1)[:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.attention(x, x, x)[0][:, 0])


class ScaledFunction(nn.Module):
    """A parameter that is an argument of nothing known."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.head = nn.Parameter(torch.tensor([0.3])), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.prelu(x, self.slope))


def classes(n: int) -> Tensor:
    return torch.randint(4, (n,))


Case = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]
CASES: dict[str, Case] = {
    "images": (images, lambda: (torch.randn(16, 2, 8, 8), classes(16))),
    "unequal parts": (images, lambda: (torch.randn(10, 2, 8, 8), classes(10))),
    "tokens": (
        lambda: Tokens("embedding"),
        lambda: (torch.randint(20, (8, 12)), torch.randint(20, (8, 12))),
    ),
    "as many positions as samples": (
        lambda: Tokens("embedding"),
        lambda: (torch.randint(20, (8, 8)), torch.randint(20, (8, 8))),
    ),
    "learned positions": (
        lambda: Tokens("parameter"),
        lambda: (torch.randint(20, (8, 9)), torch.randint(20, (8, 9))),
    ),
    "fewer samples than parts": (
        lambda: nn.Linear(3, 4), lambda: (torch.randn(3, 3), classes(3))
    ),
    "turned": (Turned, lambda: (torch.randn(8, 5, 6), classes(8))),
    "by hand": (ByHand, lambda: (torch.randn(16, 6), classes(16))),
    "time first": (TimeFirst, lambda: (torch.randn(8, 8, 6), classes(8))),
    "attention": (Attention, lambda: (torch.randn(8, 5, 6), classes(8))),
    "unknown function": (ScaledFunction, lambda: (torch.randn(8, 6), classes(8))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_parts_run_alone(
    name: str, make_objective: MakeObjective
) -> None:
    torch.manual_seed(0)
    make, data = CASES[name]
    model = make().double()
    x, y = data()
    x = x.double() if x.is_floating_point() else x
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(m.get_buffer("running_mean"))
            nn.init.uniform_(m.get_buffer("running_var"), 0.5, 2.0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    objective = make_objective(model, x, y, "cross_entropy")
    found = flow(objective)
    assert sum(found.part_samples) == len(x)
    parts = []
    for first, last in zip(
        [0, *torch.tensor(found.part_samples).cumsum(0)[:-1].tolist()],
        torch.tensor(found.part_samples).cumsum(0).tolist(),
        strict=True,
    ):
        out = model(x[first:last])
        loss = F.cross_entropy(out.flatten(0, -2), y[first:last].flatten())
        parts.append(torch.autograd.grad(loss, objective.parameters))
    assert found.gram_TPP is not None
    for i, gram in enumerate(found.gram_TPP):
        flat = torch.stack([part[i].flatten() for part in parts])
        expected = flat @ flat.T
        # Sums of some hundred products of relative error 1e-16, relative to the longest part.
        torch.testing.assert_close(gram, expected, rtol=1e-11, atol=1e-13 * float(expected.max()))
    for g, whole in zip(
        found.gradient, torch.autograd.grad(objective.sum_of(objective.batches[0]), objective.parameters),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(g, whole, rtol=1e-11, atol=1e-13)
