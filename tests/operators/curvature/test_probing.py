"""A second derivative is called wrong where it is, and never for the rounding in samples that are fitted already."""

from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from curvcli.objective import checks
from curvcli.objective.batch import Batch
from curvcli.operators.curvature.hessian import Hessian
from tests.conftest import MakeObjective


def trained(steps: int, learning_rate: float = 0.5) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network with BatchNorm after steps of SGD on digits, and its data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8)
    images, labels = (images - images.mean()) / images.std(), torch.from_numpy(targets).long()
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)
    for _ in range(steps):
        some = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[some]), labels[some]).backward()
        optimizer.step()
    return model.eval(), images[:64], labels[:64]


@pytest.mark.parametrize("steps", [10, 30])
def test_fitted_samples_accuse_no_derivative(make_objective: MakeObjective, steps: int) -> None:
    """The first two samples have a loss of 1e-14: their curvature is rounding; products are those of float64."""
    model, x, y = trained(steps)
    objective = make_objective(model, x, y)
    first_two = F.cross_entropy(model(x[:2]).double(), y[:2]).item()
    assert first_two < 1e-6 < objective.loss
    operator = Hessian(objective)
    assert not operator.finite_differences
    assert not any("symmetric" in note for note in objective.notes)
    v_N = torch.randn(operator.n, generator=torch.Generator().manual_seed(1))
    product_N = operator.matvec(v_N).double()
    # The oracle: forward over reverse in float64, by torch.func on the network as it is.
    wide, names = model.double(), [name for name, _ in model.named_parameters()]
    parameters = dict(wide.named_parameters())
    parts = v_N.double().split([p.numel() for p in parameters.values()])
    tangents = {n: t.view_as(parameters[n]) for n, t in zip(names, parts, strict=True)}

    def loss(p: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(wide, p, (x.double(),)), y)

    truth = torch.func.jvp(torch.func.grad(loss), (parameters,), (tangents,))[1]
    truth_N = torch.cat([truth[n].detach().reshape(-1) for n in names])
    # Rounding of float32 through five layers; a wrong derivative is off by a tenth and more.
    assert float((product_N - truth_N).norm() / truth_N.norm()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_all_is_fitted_no_verdict_is_given(
    make_objective: MakeObjective, dtype: torch.dtype
) -> None:
    """At a loss of zero float64 too has nothing but rounding: neither right nor wrong can be told."""
    torch.manual_seed(1)
    last = nn.Linear(16, 2)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), last)
    x = torch.randn(64, 4)
    y = (x[:, 0] > 0).long()
    x[:, 0] += 2 * x[:, 0].sign()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        last.weight.mul_(8)
        last.bias.mul_(8)
    objective = make_objective(model.to(dtype), x.to(dtype), y)
    assert objective.loss == 0
    Hessian(objective)
    assert not any("wrong" in note for note in objective.notes)
    assert any("cannot be told" in note for note in objective.notes)


class Uncopied(nn.Module):
    """A layer that cannot be copied."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = LostCurvature.apply(x)
        return out

    def __deepcopy__(self, memo: Any) -> "Uncopied":
        raise TypeError("not to be copied")


class LostCurvature(torch.autograd.Function):
    """a b², where ∂²/∂b∂a is lost but ∂²/∂a∂b is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x[:, :1] * x[:, 1:] ** 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        a, b = x[:, :1], x[:, 1:]
        return grad * torch.cat([b**2, 2 * a.detach() * b], 1)


def test_a_network_that_cannot_be_copied_is_not_accused() -> None:
    """Products of a wrong derivative are replaced by differences also where float64 cannot prove it."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 2), Uncopied())
    x, y = torch.randn(12, 3), torch.randn(12, 1)
    objective = checks.make_objective(
        model, [Batch((x, y), 12)],
        lambda m, d: (F.mse_loss(m(d[0]), d[1], reduction="sum"), float(len(d[1]))),
    )  # fmt: skip
    assert Hessian(objective).finite_differences
    assert any("cannot be told" in note for note in objective.notes)
