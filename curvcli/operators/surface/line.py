"""The loss along a line through θ, and how far the gradient can be trusted."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvcli.linalg.vectors import euclidean_norm
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Curvature


class Line:
    """t -> L(θ + tΔ), evaluated without gradients; θ is restored after each call.

    Args:
        objective: L.
        direction_N: Δ.
        operator: whose micro-batches and kernels are used.
    """

    def __init__(self, objective: Objective, direction_N: Tensor, operator: Curvature[Any]) -> None:
        self.objective = objective
        self.direction_N = direction_N
        self.operator = operator
        self.evaluations = 0

    def __call__(self, t: float) -> float:
        """L(θ + tΔ)."""
        self.evaluations += 1
        with self.objective.moved(t * self.direction_N), self.operator.kernels.active():
            return self.objective.value(self.operator.micro_batch)

    def resolution(self) -> float:
        """Below this a difference of two losses is rounding: 8 eps |L|."""
        return 8 * torch.finfo(self.objective.dtype).eps * abs(self.objective.loss)


class GradientNoise(NamedTuple):
    """How much of the gradient is an accident of the sample."""

    norm: float
    """‖∇L‖."""
    noise: float | None
    """√E‖g - E g‖² = √(tr Σ / W), from the spread over parts of the data; None with one part."""


def gradient_noise(operator: Curvature[Any]) -> GradientNoise:
    """‖∇L‖ against its sampling noise, from the parts' gradients weighted by their terms."""
    objective = operator.objective
    decay_N = objective.weight_decay * objective.flat()
    mean_N = operator.gradient - decay_N
    squares, parts = 0.0, 0
    for weight, part_N in operator.part_gradients():
        share = weight / objective.weight
        squares += float((part_N - share * mean_N).square().sum())
        parts += 1
    norm = float(euclidean_norm(operator.gradient))
    if parts < 2:
        return GradientNoise(norm, None)
    return GradientNoise(norm, (squares * parts / (parts - 1)) ** 0.5)


def layer_shares(
    objective: Objective, v_N: Tensor, count: int | None = None
) -> list[tuple[str, float]]:
    """(parameter name, share of ‖v‖² in it), largest first."""
    squares = [float(part.square().sum()) for part in objective.views(v_N)]
    total = sum(squares) or 1.0
    shares = sorted(
        ((name, s / total) for name, s in zip(objective.names, squares, strict=True)),
        key=lambda pair: -pair[1],
    )
    return shares[:count]
