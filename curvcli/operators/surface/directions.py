"""Directions to look along: normalised by filter, orthogonal, principal ones of a series of weights.

Shapes: ``N`` parameters, ``K`` checkpoints, ``D`` directions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.linalg.vectors import double
from curvcli.objective.objective import Objective


def filter_normalised(objective: Objective, direction_N: Tensor) -> Tensor:
    """The direction with each filter as long as the filter of the weights at the same place.

    d_i ← d_i ‖w_i‖ / ‖d_i‖, with a filter for each row of a weight (an output channel, a neuron, a token). Biases and
    scales of normalisation layers do not move, unless there is nothing else (Li, Xu, Taylor, Studer & Goldstein,
    NeurIPS 2018, section 4).

    Rows of length 5 and 1:

    >>> from curvcli.loading.loss import loss_terms
    >>> from curvcli.objective.batch import Batch
    >>> from curvcli.objective.checks import make_objective
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> batch = Batch(((torch.ones(1, 2),), {}, torch.zeros(1, 2)), 1)
    >>> objective = make_objective(model, [batch], loss_terms("mse", {}))
    >>> filter_normalised(objective, torch.tensor([2.0, 0.0, 0.0, 7.0])).tolist()
    [5.0000, 0.0000, 0.0000, 1.0000]
    """
    only_vectors = all(p.dim() < 2 for p in objective.parameters)
    parts = []
    for p, d in zip(objective.parameters, objective.views(direction_N), strict=True):
        if p.dim() < 2 and not only_vectors:
            parts.append(torch.zeros_like(d))
            continue
        filters = len(p) if p.dim() >= 2 else 1
        wide_FM, weights_FM = (double(x.detach()).reshape(filters, -1) for x in (d, p))
        lengths_F = wide_FM.norm(dim=1, keepdim=True)
        scale_F = weights_FM.norm(dim=1, keepdim=True) / lengths_F.where(lengths_F > 0, torch.inf)
        parts.append((wide_FM * scale_F).reshape(p.shape).to(d))
    return objective.flatten(parts)


def orthogonal_to(first_N: Tensor, second_N: Tensor) -> tuple[Tensor, float]:
    """(Δ₂ − c Δ₁, c) with the c that makes it orthogonal to Δ₁.

    >>> d_N, c = orthogonal_to(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]))
    >>> d_N.tolist(), c
    ([0.0000, 3.0000], 0.5000)
    """
    a_N, b_N = double(first_N), double(second_N)
    share = float(torch.dot(a_N, b_N) / torch.dot(a_N, a_N))
    return (b_N - share * a_N).to(second_N), share


class Principal(NamedTuple):
    """The principal directions of a series of weights."""

    directions: list[Tensor]
    """Orthonormal, the one of largest variance first."""
    shares: list[float]
    """Of the variance about the mean, in each direction."""
    coordinates_KD: Tensor
    """Of each checkpoint, from θ."""
    rest_K: Tensor
    """How far each lies from the plane through θ."""


def principal(offsets: Sequence[Tensor], count: int) -> Principal:
    """Principal directions of weights that lie at θ + offset, from the Gram matrix of the offsets.

    Args:
        offsets: of the checkpoints in their order; one of them may be θ itself, with an offset of zero.
        count: directions at most; fewer where the series has no variance in more.
    """
    gram_KK = torch.stack([torch.stack([_dot(a_N, b_N) for b_N in offsets]) for a_N in offsets])
    k = len(offsets)
    centre_KK = torch.eye(k, dtype=torch.float64) - 1.0 / k
    values_K, vectors_KK = torch.linalg.eigh(centre_KK @ gram_KK @ centre_KK)
    floor = torch.finfo(offsets[0].dtype).eps * float(values_K[-1])
    kept = [i for i in range(k - 1, -1, -1) if float(values_K[i]) > floor][:count]
    directions, columns = [], []
    for i in kept:
        # Σ u_i (x_i − mean) / √λ, with u orthogonal to the ones.
        weights_K = (centre_KK @ vectors_KK[:, i]) / values_K[i].sqrt()
        column_K = gram_KK @ weights_K
        sign = -1.0 if float(column_K[0]) < 0 else 1.0
        direction_N = torch.zeros_like(double(offsets[0]))
        for weight, offset_N in zip(weights_K.tolist(), offsets, strict=True):
            direction_N.add_(double(offset_N), alpha=sign * weight)
        directions.append(direction_N.to(offsets[0]))
        columns.append(sign * column_K)
    coordinates_KD = torch.stack(columns, 1) if columns else torch.zeros(k, 0, dtype=torch.float64)
    rest_K = (gram_KK.diagonal() - coordinates_KD.square().sum(1)).clamp(min=0).sqrt()
    whole = float(values_K.clamp(min=0).sum())
    shares = [float(values_K[i]) / whole for i in kept]
    return Principal(directions, shares, coordinates_KD, rest_K)


def _dot(a_N: Tensor, b_N: Tensor) -> Tensor:
    return torch.dot(double(a_N), double(b_N)).cpu()
