"""Measures of flatness that do not change when layers are rescaled: relative flatness, and the Fisher-Rao norm.

Shapes: ``N`` parameters, ``D`` neurons, ``M`` inputs of each, ``P`` parts of the data.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from curvcli.linalg.stochastic.probes import random_signs
from curvcli.linalg.vectors import double
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.fisher import EmpiricalFisher


def relative_flatness(
    operator: Curvature[Any], probes: int, seed: int, stop: Callable[[], object]
) -> dict[str, list[float]]:
    """Draws whose mean is Σ_{s,s'} ⟨w_s, w_s'⟩ tr H_{s,s'} of each weight W with rows w_s, by parameter.

    Petzka, Kamp, Adilova, Sminchisescu & Boley, NeurIPS 2021, definition 3. With a random sign matrix Z, one product
    gives (WZ)ᵀ H (WZ) with that expectation, for all weights at once: what is between two of them has mean zero.

    Args:
        operator: H.
        probes: products.
        seed: of the signs.
        stop: ends it early.

    A linear regression on one input with two outputs, H_{s,s'} = δ_{ss'} x² and L = ½ Σ (w x)², gives ‖w‖² x²:

    >>> from curvcli.loading.loss import loss_terms
    >>> from curvcli.objective.batch import Batch
    >>> from curvcli.objective.checks import make_objective
    >>> from curvcli.operators.curvature.hessian import Hessian
    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0], [1.0]]))
    >>> batch = Batch(((torch.tensor([[2.0]]),), {}, torch.zeros(1, 2)), 1)
    >>> objective = make_objective(model, [batch], loss_terms("mse", {}))
    >>> relative_flatness(Hessian(objective), 2, 0, lambda: None)
    {'weight': [40.0, 40.0]}
    """
    objective, ranks = operator.objective, operator.ranks
    generator = torch.Generator().manual_seed(seed)
    chosen = {i: held for i, held in enumerate(objective.tensors) if len(held.shape) >= 2}
    theta_N, draws = objective.flat(), list[list[float]]()
    for _ in range(probes if chosen else 0):
        if stop() is not None and draws:
            break
        vector_N = torch.zeros_like(theta_N)
        for i, held in chosen.items():
            # Rows that no sample looks up are zero here, and move nothing.
            weight_DM = objective.whole(theta_N, i).flatten(1)
            inputs = weight_DM.shape[1]
            signs_MM = random_signs(inputs * inputs, generator, weight_DM).view(inputs, inputs)
            turned = (weight_DM @ signs_MM).view(held.shape)
            vector_N[held.own] = objective.own(turned, i)
        product_N = double(vector_N) * double(operator.matvec(vector_N))
        sums = torch.stack([product_N[held.own].sum() for held in chosen.values()])
        draws.append(ranks.over_entries(sums).tolist())
    values = zip(*draws, strict=True) if draws else [[]] * len(chosen)
    return {held.name: list(draw) for held, draw in zip(chosen.values(), values, strict=True)}


class Norm(NamedTuple):
    """A norm with its sampling error."""

    value: float
    standard_error: float | None
    parts: int


def fisher_rao(objective: Objective) -> Norm:
    """√⟨θ, I(θ) θ⟩ with I = E ∇ℓ ∇ℓᵀ over the data, so √E⟨θ, ∇ℓ⟩².

    Liang, Poggio, Rakhlin & Stokes, AISTATS 2019, definition 2. The error is that of a mean over parts of the data.

    Args:
        objective: without weight decay.

    Raises:
        LossError: the objective does not separate outputs and loss.
    """
    operator = EmpiricalFisher(objective, memory=objective.memory)
    theta_N, dot = double(objective.flat()), operator.ranks.dot
    sums, weights = [], []
    for part in operator.parts(objective.flat()[None]):
        sums.append(float(dot(theta_N, double(part.products_KN[0]))))
        weights.append(part.weight)
    n, square, whole = len(sums), max(0.0, sum(sums)), sum(weights)
    value = math.sqrt(square)
    if n < 3 or not value:
        return Norm(value, None, n)
    rest = sum((s - w / whole * square) ** 2 for s, w in zip(sums, weights, strict=True))
    return Norm(value, math.sqrt(n / (n - 1) * rest) / (2 * value), n)
