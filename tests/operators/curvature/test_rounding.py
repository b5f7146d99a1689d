"""Rounding is measured on the function whose products they are, where some samples stand for all too."""

import pytest
import torch
from torch import Tensor, nn

from curvcli import Batch
from curvcli.loading.loss import loss_terms
from curvcli.objective import checks
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.rounding import product_error
from tests.conftest import MakeObjective


@pytest.mark.parametrize("splits", [[100], [7, 50, 43], [1] * 100])
def test_every_third_sample_whatever_the_batches(
    splits: list[int], make_objective: MakeObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(100, 5), torch.randint(3, (100,))
    operator = Hessian(make_objective(model, x, y, splits=splits))
    w_RN = torch.randn(1, operator.n)
    product_RN = operator.matvec(w_RN[0])[None]
    seen: dict[torch.dtype, list[Tensor]] = {torch.float32: [], torch.float64: []}

    def contribution(self: Hessian, batch: Batch, vectors_KN: Tensor) -> Tensor:
        (inputs,), _, _ = batch.data
        seen[inputs.dtype].append(inputs)
        return whole(self, batch, vectors_KN)

    whole = Hessian.contribution
    monkeypatch.setattr(Hessian, "contribution", contribution)
    found = product_error(operator, w_RN, product_RN)
    assert found is not None
    for dtype, inputs in seen.items():
        assert torch.equal(torch.cat(inputs), x[::3].to(dtype))


def test_batches_whose_statistics_are_used_are_not_cut() -> None:
    """Seven samples: pieces of one have no statistics, and pieces of more have others."""
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        batch = Batch(((torch.randn(7, 5, dtype=dtype),), {}, torch.randint(3, (7,))), 7)
        terms = loss_terms("cross_entropy", {})
        operator = Hessian(checks.make_objective(model.to(dtype), [batch], terms, train_mode=True))
        v_N = torch.linspace(-1, 1, operator.n, dtype=dtype)
        product_N = operator.matvec(v_N)
        found = product_error(operator, v_N[None], product_N[None])
        assert found is not None
        # A product of a small network is right to some hundred units in the last place.
        limit = 300 * torch.finfo(dtype).eps * float(product_N.norm())
        # In float64 the weights are moved by a thousand units to measure it.
        assert float(found.error_RN.norm()) < limit * (1 if dtype == torch.float32 else 1e3)
