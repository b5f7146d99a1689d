"""The rounding of products is measured on the function whose products they are."""

import torch
from torch import nn

from curvcli import Batch, make_objective
from curvcli.loading.loss import loss_terms
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.rounding import product_error


def test_batches_whose_statistics_are_used_are_not_cut() -> None:
    """Seven samples: pieces of one have no statistics, and pieces of more have others."""
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        batch = Batch(((torch.randn(7, 5, dtype=dtype),), {}, torch.randint(3, (7,))), 7)
        terms = loss_terms("cross_entropy", {})
        operator = Hessian(make_objective(model.to(dtype), [batch], terms, train_mode=True))
        v_N = torch.linspace(-1, 1, operator.n, dtype=dtype)
        product_N = operator.matvec(v_N)
        found = product_error(operator, v_N[None], product_N[None])
        assert found is not None
        # A product of a small network is right to some hundred units in the last place.
        limit = 300 * torch.finfo(dtype).eps * float(product_N.norm())
        # In float64 the weights are moved by a thousand units to measure it.
        assert float(found.error_RN.norm()) < limit * (1 if dtype == torch.float32 else 1e3)
