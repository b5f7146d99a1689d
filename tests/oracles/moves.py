"""`step` and `lr` against dense float64: the change of the loss along −g, and the interval of the stable rate."""

import copy

import torch
from torch import Tensor

from curvcli.operators.curvature.hessian import Hessian
from tests.oracles.tally import Tally, Truth


def stepped(truth: Truth, tally: Tally) -> None:
    """The gradient's step: its true change by two losses in float64."""
    (method,) = truth.ask("step", method=["gradient"]).result.methods
    direction_N = _gradient(truth)
    if not float(direction_N.norm()) or method.true_change is None:
        return
    here = _loss(truth, torch.zeros_like(direction_N))
    change = _loss(truth, -method.norm * direction_N / direction_N.norm()) - here
    # The step itself is rounded, and the oracle's own losses are.
    slack = 64 * float(torch.finfo(truth.dtype).eps) * float(direction_N.norm()) * method.norm
    slack += 64 * float(torch.finfo(torch.float64).eps) * (1 + abs(here))
    holds = abs(method.true_change - change) <= method.true_change_residual + slack
    tally.add(truth.kind("step: true change ± residual"), holds, truth.name)


def learning_rates(truth: Truth, tally: Tally) -> None:
    """2/λ of gradient descent, after three products."""
    options = {"steps": 4, "refine": 0, "confirm": 0, "max_trials": 2, "max_matvecs": 3}
    bound = truth.ask("lr", optimizer="sgd", **options).result.bound
    top = float(truth.values_N[0])
    if bound.interval is None or top <= truth.error:
        return
    low, high = 2 / (top + truth.error), 2 / (top - truth.error)
    holds = bound.interval[0] <= high and low <= bound.interval[1]
    tally.add(truth.kind("lr: 2/λ after three products"), holds, truth.name)


def _gradient(truth: Truth) -> Tensor:
    """∇L as the program has it: in float32 the direction of a gradient near zero is a matter of rounding."""
    gradient_N = Hessian(truth.network.objective(truth.dtype)).gradient
    return gradient_N.double()


def _loss(truth: Truth, step_N: Tensor) -> float:
    """L(θ + Δ) in float64."""
    model = copy.deepcopy(truth.network.model).double()
    first = 0
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            part_N = step_N[first : first + parameter.numel()]
            parameter.add_(part_N.view_as(parameter))
            first += parameter.numel()
        return float(truth.network.value(model))
