"""Convolutions compute what is asked for, as torch's own do in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from curvcli.operators.autodiff.rewrites.registry import Rewritten
from curvcli.operators.curvature.curvature import Strategy
from curvcli.operators.curvature.hessian import Hessian
from tests.conftest import MakeObjective
from tests.oracles.dense import dense_hessian

CASES: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (nn.Conv1d, {"kernel_size": 3}),
    (nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nn.Conv2d, {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, 1), "bias": False}),
    (nn.Conv2d, {"kernel_size": 2, "dilation": 2, "groups": 2}),
    (nn.Conv2d, {"kernel_size": 3, "padding": "same"}),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}),
    (nn.Conv3d, {"kernel_size": 2, "groups": 4}),
]


def derivatives(kind: type[nn.Module], options: dict[str, Any], fused: bool) -> list[Tensor]:
    """Gradient, whole product, and the products of single blocks of the Hessian of a scalar."""
    torch.manual_seed(0)
    axes = int(kind.__name__[4])
    model = nn.Sequential(kind(4, 8, **options), nn.Tanh(), kind(8, 4, **options)).double()
    x = torch.randn(3, 4, *[9] * axes, dtype=torch.float64, requires_grad=True)
    inputs = [x, *model.parameters()]
    vectors = [torch.randn_like(t) for t in inputs]
    if fused:
        with Rewritten():
            total = model(x).sin().sum()
    else:
        total = model(x).sin().sum()
    gradients = torch.autograd.grad(total, inputs, create_graph=True)
    out = [*gradients, *torch.autograd.grad(gradients, inputs, vectors, retain_graph=True)]
    for g, t, v in zip(gradients, inputs, vectors, strict=True):
        out += torch.autograd.grad(g, t, v, retain_graph=True, materialize_grads=True)
        # A mixed block as well: what leads elsewhere is left out, what leads there is not.
        out += torch.autograd.grad(g, inputs[1], v, retain_graph=True, materialize_grads=True)
    return out


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0].__name__} {c[1]}")
def test_convolutions_have_the_same_derivatives(
    case: tuple[type[nn.Module], dict[str, Any]],
) -> None:
    for ours, theirs in zip(derivatives(*case, True), derivatives(*case, False), strict=True):
        # Sums of a few thousand products of float64 of order one.
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


class Counter(TorchDispatchMode):
    """How many convolutions, and parts of backward convolutions, are computed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.count += 1
        elif func is torch.ops.aten.convolution_backward.default:
            self.count += sum(args[-1][:2])
        return func(*args, **(kwargs or {}))


def test_a_block_costs_two_convolutions_for_each_layer_behind_it() -> None:
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()]
    model = nn.Sequential(*layers)
    weights = [m.weight for m in layers if isinstance(m, nn.Conv2d)]
    with Rewritten():
        total = model(torch.randn(2, 4, 6, 6)).sin().sum()
    gradients = torch.autograd.grad(total, weights, create_graph=True)
    for i, (g, w) in enumerate(zip(gradients, weights, strict=True)):
        with Counter() as counter:
            torch.autograd.grad(g, w, torch.ones_like(g), retain_graph=True)
        assert counter.count == 2 * (5 - i) + 2


class _Views(nn.Module):
    """What networks do to the output of a convolution: views, in-place activations, pooling, branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y.view(len(x), -1).mul_(1.5)  # what changes through a view changes in the tensor
        y = F.tanh(y)
        flat = y.view(len(x), 4, -1)  # fails on a layout with the channels last
        z = self.norm(self.second(y)) + 0.1 * flat.view_as(y)
        z = F.avg_pool2d(F.softplus(z), 2).view(x.size(0), -1)
        out: Tensor = self.head(z)
        return out


@pytest.mark.parametrize("strategy", ["keep", "rebuild", "finite-difference"])
def test_layouts_within_products_are_not_seen_by_the_network(
    strategy: Strategy, make_objective: MakeObjective
) -> None:
    """Views of a convolution's output work, and products are those of a dense Hessian in float64."""
    torch.manual_seed(0)
    model = _Views().eval()
    x, y = torch.randn(6, 2, 4, 4), torch.randint(0, 3, (6,))
    objective = make_objective(model, x, y, "cross_entropy")
    operator = Hessian(objective, strategy=strategy)
    twin = _Views().eval()
    twin.load_state_dict(model.state_dict())
    dense = dense_hessian(twin.double(), x, y, "cross_entropy")
    products = torch.stack([operator.matvec(e) for e in torch.eye(operator.n)])
    # float32: eps times some hundred additions; differences of gradients lose half of the digits.
    limit = 3e-2 if strategy == "finite-difference" else 2e-5
    assert float((products - dense).norm() / dense.norm()) < limit
