"""What the rounding of products is where some samples stand for all."""

import pytest
import torch
from torch import Tensor, nn

from curvcli.objective.batch import Batch
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
