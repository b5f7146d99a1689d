"""The loss along a line through θ, and how far the gradient can be trusted."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from curvcli.linalg.lanczos.lanczos import Status
from curvcli.linalg.stochastic.probes import random_signs
from curvcli.linalg.stochastic.quadrature import gauss_rules
from curvcli.linalg.vectors import double, euclidean_norm
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.parts import part_gradients
from curvcli.operators.curvature.rounding import saturation

# A draw of rounding may be so many times smaller than another.
_ONE_DRAW = 3


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

    @cached_property
    def resolution(self) -> float:
        """Below this a difference of two losses is rounding: 8 eps |L|, or more as measured by `loss_resolution`."""
        least = 8 * torch.finfo(self.objective.dtype).eps * abs(self.objective.loss)
        return max(least, loss_resolution(self.operator))


def loss_resolution(operator: Curvature[Any], draws: int = 2) -> float:
    """How far L moves, at most, when the last digits of all weights are moved at random.

    So much is added to L(θ + tΔ) by the rounding of θ + tΔ alone; each draw is one of many. Other digits do not show
    that sums of probabilities near 1 are rounded there: that moves each of two losses by up to eps / 2.
    """
    objective = operator.objective
    moved = []
    for step_N in _last_digits(objective, draws):
        with objective.moved(step_N), operator.kernels.active():
            moved.append(abs(objective.value(operator.micro_batch) - objective.loss))
    return _ONE_DRAW * max(moved) + saturation(objective) * objective.loss


def _last_digits(objective: Objective, draws: int) -> Iterator[Tensor]:
    """Steps of a unit in the last place of each weight, up or down at random."""
    theta_N, eps = objective.flat(), torch.finfo(objective.dtype).eps
    n = objective.n
    own = objective.ranks.entries(n)
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        yield eps * random_signs(n, generator, theta_N, own) * theta_N


class GradientNoise(NamedTuple):
    """How much of the gradient is an accident of the sample."""

    norm: float
    """‖∇L‖."""
    noise: float | None
    """√E‖g - E g‖² = √(tr Σ / W), from the spread over parts of the data; None with one part."""


def gradient_noise(operator: Curvature[Any]) -> GradientNoise:
    """‖∇L‖ against its sampling noise, from the parts' gradients weighted by their terms."""
    objective, norm_of = operator.objective, operator.ranks.norm
    decay_N = objective.weight_decay * objective.flat()
    mean_N = operator.gradient - decay_N
    squares, parts = 0.0, 0
    for weight, part_N in part_gradients(operator):
        share = weight / objective.weight
        squares += float(norm_of(part_N - share * mean_N)) ** 2
        parts += 1
    norm = float(norm_of(operator.gradient))
    if parts < 2:
        return GradientNoise(norm, None)
    return GradientNoise(norm, (squares * parts / (parts - 1)) ** 0.5)


class Resolution(NamedTuple):
    """How far gradient and loss move when every weight moves by a unit in the last place."""

    gradient: float
    """‖∇L(θ′) − ∇L(θ)‖, the largest of some draws."""
    loss: float
    """|L(θ′) − L(θ)|"""


def resolution_of(operator: Curvature[Any], draws: int = 2) -> Resolution:
    """What is rounding in ∇L and L, from gradients at weights whose last digits are moved at random."""
    objective = operator.objective
    found = []
    for step_N in _last_digits(objective, draws):
        with objective.moved(step_N), operator.kernels.active():
            moved_N = objective.gradient(operator.micro_batch)
            loss = objective.value(operator.micro_batch)
        difference_N = moved_N - operator.gradient
        found.append(
            Resolution(float(operator.ranks.norm(difference_N)), abs(loss - objective.loss))
        )
    return Resolution(max(f.gradient for f in found), max(f.loss for f in found))


class Promise(NamedTuple):
    """What a Newton step promises to take from the loss."""

    value: float
    """½ gᵀ(H₊ + εI)⁻¹g."""
    error: float
    """Of the quadrature: more than the distance from the rule of half the steps."""


def newton_promise(
    operator: Curvature[Any],
    epsilon: float,
    steps: int,
    stop: Callable[[], Status | None] = lambda: None,
) -> Promise:
    """½ gᵀ(H₊ + εI)⁻¹g by a Gauss rule of Lanczos from g, with H₊ the positive part of H.

    Half the square of the Newton decrement (Boyd & Vandenberghe, Convex Optimization, section 9.5.1), which does not
    change when parameters are scaled.

    Raises:
        Stopped: ``stop`` gave a reason before the last step.
    """
    norm = float(operator.ranks.norm(operator.gradient))
    if norm == 0:
        return Promise(0.0, 0.0)
    rules = gauss_rules(operator, operator.gradient / norm, steps, stop)
    whole, half = (
        0.5 * norm**2 * float(rule.weights_M @ (1 / (np.maximum(rule.theta_M, 0) + epsilon)))
        for rule in (rules.nodes, rules.half)
    )
    return Promise(whole, abs(whole - half) if rules.matvecs < operator.n else 0.0)


def layer_shares(
    objective: Objective, v_N: Tensor, count: int | None = None
) -> list[tuple[str, float]]:
    """(parameter name, share of ‖v‖² in it), largest first."""
    own = [double(euclidean_norm(v_N[held.own])).square() for held in objective.tensors]
    squares = objective.ranks.over_entries(torch.stack(own)).tolist()
    total = sum(squares) or 1.0
    shares = sorted(
        ((held.name, s / total) for held, s in zip(objective.tensors, squares, strict=True)),
        key=lambda pair: -pair[1],
    )
    return shares[:count]
