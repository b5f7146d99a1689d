"""Networks that cast to float32 or keep constants in it run in float64, as if they were written without."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvcli import Batch, Subject, analyse, make_objective
from curvcli.loading.loss import loss_terms
from curvcli.machine.lifted import in_float64


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.softmax(self.first(x), -1) @ torch.eye(5, dtype=x.dtype))
        return out


class Casting(Plain):
    """The input, a value between and a constant that is no buffer are in float32; the constant meets float64."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = torch.eye(5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.softmax(self.first(x.float()), -1, dtype=torch.float32)
        h = h.to(torch.float32) @ self.basis + torch.zeros(5, dtype=torch.float32)
        scale = torch.linalg.solve(torch.eye(len(h)), torch.ones(len(h), 1).type_as(self.basis))
        out: Tensor = self.last(scale * h)
        return out


def subject(model: nn.Module) -> Subject:
    torch.manual_seed(1)
    batch = Batch(((torch.randn(6, 4).double(),), {}, torch.arange(6) % 3), 6)
    terms = loss_terms("cross_entropy", {})
    return Subject(objective=make_objective(model.double(), [batch], terms))


def test_casts_and_constants_are_lifted() -> None:
    """Loss and curvature are those of the same network without casts: to rounding of float64 in some hundred sums."""
    found, truth = (
        analyse("hessian", subject(model), top=2, bottom=0, tol=1e-9).result
        for model in (Casting(), Plain())
    )
    assert found.loss == pytest.approx(truth.loss, rel=1e-14)
    for pair, right in zip(found.top, truth.top, strict=True):
        assert pair.value == pytest.approx(right.value, rel=1e-12)


def test_right_gradients_of_networks_with_casts_are_not_accused() -> None:
    """`backprop` works in float64, for which these networks were not written."""
    model = Casting()
    before = copy.deepcopy(model)
    result = analyse("backprop", subject(model)).result
    assert result.passed
    # Float32 somewhere between would be worth 1e-7.
    assert max(i.error for i in result.identities) < 1e-12
    assert model.basis.dtype == before.basis.dtype == torch.float32


def test_bits_and_written_tensors_keep_their_type() -> None:
    """What is written to, and what is looked at as bits, is no cast."""
    kept, wide = torch.zeros(3), torch.arange(3).double()
    with in_float64():
        assert torch.tensor([1], dtype=torch.int32).view(torch.float32).dtype == torch.float32
        kept.copy_(wide)
        kept[1] = wide[2]
        torch.add(wide.float(), 1, out=(total := torch.zeros(3)))
        assert torch.ones(2).dtype == torch.float64
    assert kept.tolist() == [0.0, 2.0, 2.0]
    assert total.dtype == torch.float64
    assert torch.ones(2).dtype == torch.float32
