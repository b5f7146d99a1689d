"""Gauss-Newton products are those of the dense matrix, for every loss and strategy."""

import math

import pytest
import torch
from torch import Tensor

from curvcli import Subject, analyse
from curvcli.operators.curvature.curvature import Strategy
from curvcli.operators.curvature.gauss_newton import GaussNewton
from tests.conftest import MakeObjective
from tests.oracles.dense import MEANS, random_data, random_network
from tests.oracles.mixture import sample


@pytest.mark.parametrize("loss", sorted(MEANS))
@pytest.mark.parametrize("strategy", ["keep", "rebuild"])
def test_gauss_newton_products_against_the_dense_matrix(
    loss: str, strategy: Strategy, make_objective: MakeObjective
) -> None:
    """G = Jᵀ H_out J with J and H_out by forward-mode differentiation, in float64."""
    model = random_network(0, [3, 4, 2], "tanh").double()
    x, y = random_data(0, 9, 3, 2, loss)
    y = y.double() if y.is_floating_point() else y
    named = list(model.named_parameters())
    theta = torch.cat([p.detach().reshape(-1) for _, p in named])

    def outputs(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for _, p in named])
        weights = {n: part.view_as(p) for (n, p), part in zip(named, parts, strict=True)}
        out: Tensor = torch.func.functional_call(model, weights, (x.double(),))
        return out

    j = torch.func.jacfwd(outputs)(theta).reshape(-1, len(theta))
    z = outputs(theta)
    inner = torch.func.hessian(lambda f: MEANS[loss](f.view_as(z), y))(z.reshape(-1))
    operator = GaussNewton(
        make_objective(model, x.double(), y, loss, splits=[4, 5]), strategy=strategy
    )
    products = torch.stack([operator.matvec(e) for e in torch.eye(operator.n, dtype=torch.float64)])
    assert torch.allclose(products, j.T @ inner @ j, atol=1e-12)


@pytest.mark.parametrize("seed", [115, 299])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_outputs_leave_rounding_and_no_wrong_derivative(
    seed: int, dtype: torch.dtype
) -> None:
    """Probabilities of 1 to rounding: the matrix of some samples is all rounding, that of all is right."""
    network = sample(seed)
    subject = Subject(objective=network.objective(dtype))
    found = analyse("hessian", subject, top=2, bottom=0, matrix="ggn").result
    values, error = network.sampled_spectrum("ggn")
    for pair, value in zip(found.top, values.tolist(), strict=False):
        assert abs(pair.value - value) <= pair.residual + error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [-60.0, -25.0, 3.0, 25.0, 60.0])
@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits"])
def test_probabilities_near_one_have_the_curvature_of_the_closed_form(
    loss: str, gap: float, dtype: torch.dtype, make_objective: MakeObjective
) -> None:
    """σ(z) σ(−z) ‖x‖², twice that for two logits: 1 − p, which is rounding at z = 60, is not needed."""
    x = torch.tensor([[1.0, 0.5]], dtype=dtype)
    both = loss == "cross_entropy"
    model = torch.nn.Linear(2, 1 + both, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[gap, 0.0], [0.0, 0.0]][: 1 + both]))
    y = torch.tensor([0]) if both else torch.zeros(1, 1, dtype=dtype)
    found = GaussNewton(make_objective(model, x, y, loss))
    decay = math.exp(-abs(gap))
    wanted = (1 + both) * 1.25 * decay / (1 + decay) ** 2
    v_N = torch.cat([x[0], -x[0]][: 1 + both])
    product_N = found.matvec(v_N / torch.linalg.vector_norm(v_N))
    # Some operations, and e^z with a rounded z.
    tolerance = (16 + abs(gap)) * torch.finfo(dtype).eps
    assert float(torch.linalg.vector_norm(product_N)) == pytest.approx(wanted, rel=tolerance)
