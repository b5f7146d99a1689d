"""A wrong second derivative is called so by every question that multiplies with it; a kink is not accused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli import Batch, Objective, Subject, analyse, make_objective
from curvcli.loading.loss import loss_terms
from tests.oracles.dense import dense_hessian, random_network


class _Cubed(torch.autograd.Function):
    """x³ whose first derivative is right, and whose second one is half of what it should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * 1.5 * (x**2 + x.detach() ** 2)


class Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        return self.second(_Cubed.apply(self.first(x)))


def objective_of(model: nn.Module, x: Tensor, y: Tensor, name: str = "mse") -> Objective:
    return make_objective(model, [Batch(((x,), {}, y), len(x))], loss_terms(name, {}))


@pytest.mark.parametrize("command", ["hessian", "trace", "density", "saddle", "taylor", "step"])
def test_a_wrong_derivative_is_found_by_every_question(command: str) -> None:
    torch.manual_seed(1)
    objective = objective_of(Wrong(), torch.randn(12, 3), torch.randn(12, 2))
    answer = analyse(command, Subject(objective=objective))
    assert answer.result.hvp_check > 0.01
    assert any(f.rule == "hessian.products" and f.severity == "error" for f in answer.findings)
    if command == "saddle":
        assert answer.result.verdict == "inconclusive"


@pytest.mark.parametrize("command", ["hessian", "saddle", "trace"])
def test_weights_on_a_kink_accuse_no_derivative(command: str) -> None:
    """A unit whose input is exactly zero for every sample: torch takes its derivative as zero, both sides differ."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight[1:] = 0
        layer.bias[1:] = 0
    answer = analyse(
        command, Subject(objective=objective_of(model, torch.randn(8, 3), torch.randn(8, 2)))
    )
    rules = [f.rule for f in answer.findings]
    assert "hessian.products" not in rules
    if (answer.result.hvp_check or 0.0) > 0.1:
        assert "hessian.kinks" in rules


def test_pairs_of_a_gram_spectrum_whose_vectors_are_noise_keep_their_values() -> None:
    """Equal samples make dependent rows: four eigenvalues and then only the weight decay."""
    torch.manual_seed(3)
    model = nn.Linear(6, 2)
    x, y = torch.randn(2, 6).repeat(6, 1), torch.randn(2, 2).repeat(6, 1)
    objective = make_objective(
        model, [Batch(((x,), {}, y), 12)], loss_terms("mse", {}), weight_decay=1.0
    )
    answer = analyse("hessian", Subject(objective=objective), matrix="ggn", top=10, bottom=0)
    assert answer.result.method == "gram"
    truth = torch.linalg.eigvalsh(dense_hessian(model, x, y, "mse", 1.0)).flip(0)
    for pair, value in zip(answer.result.top, truth.tolist(), strict=False):
        assert abs(pair.value - value) <= pair.residual
        assert pair.residual < 1e-4


@pytest.mark.parametrize("factor", [1e-20, 1e-6, 1e6])
def test_the_scale_of_the_loss_changes_no_verdict(factor: float) -> None:
    torch.manual_seed(4)
    x, y = torch.randn(10, 4), torch.randn(10, 3)

    def scaled(by: float) -> Any:
        def terms(model: nn.Module, data: Any) -> tuple[Tensor, float]:
            return by * (model(data[0]) - data[1]).square().sum(), float(data[1].numel())

        objective = make_objective(random_network(4, [4, 5, 3], "tanh"), [Batch((x, y), 10)], terms)
        return analyse("saddle", Subject(objective=objective)).result

    plain, other = scaled(1.0), scaled(factor)
    assert other.verdict == plain.verdict
    assert other.stationarity == pytest.approx(plain.stationarity, rel=1e-3)


def test_an_exploding_network_is_not_stationary() -> None:
    """Its gradient is large and its weights too: rounding of the weights alone made it a saddle."""
    model = random_network(5, [6, 30, 30, 30, 3], "relu", scale=30.0)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    result = analyse("saddle", Subject(objective=objective_of(model, x, y, "cross_entropy"))).result
    assert result.verdict == "not-stationary"


def test_the_least_budget_gives_an_answer_that_is_incomplete() -> None:
    torch.manual_seed(6)
    model = random_network(6, [4, 8, 3], "tanh")
    x, y = torch.randn(10, 4), torch.randn(10, 3)
    objective = objective_of(model, x, y)
    saddle = analyse("saddle", Subject(objective=objective), max_matvecs=2)
    assert saddle.result.verdict in ("not-stationary", "inconclusive")
    taylor = analyse("taylor", Subject(objective=objective), max_matvecs=2, direction=["gradient"])
    assert not taylor.complete
    low, high = taylor.result.critical_learning_rate_interval or (0.0, 0.0)
    truth = 2 / float(torch.linalg.eigvalsh(dense_hessian(model, x, y, "mse"))[-1])
    assert low <= truth <= high
