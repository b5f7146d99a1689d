"""Directions to look along: normalised by filter, orthogonal, principal ones of a series of weights.

Shapes: ``N`` parameters, ``K`` checkpoints, ``D`` directions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.linalg.ranks import ALONE, Ranks
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
    tensors, ranks = objective.tensors, objective.ranks
    only_vectors = all(len(held.shape) < 2 for held in tensors)
    moved = [held for held in tensors if len(held.shape) >= 2 or only_vectors]
    theta_N = objective.flat()
    counts, rows, squares = [], [], []
    for held in moved:
        filters = held.shape[0] if len(held.shape) >= 2 else 1
        counts.append(filters)
        # Of divided weights a process may hold a part of a filter.
        entries = held.first + torch.arange(held.own.stop - held.own.start, device=theta_N.device)
        rows.append(entries // (held.shape.numel() // filters))
        both_2M = torch.stack([double(x_N[held.own]) for x_N in (direction_N, theta_N)]).square()
        squares.append(both_2M.new_zeros(2, filters).index_add_(1, rows[-1], both_2M))
    lengths_F, weights_F = ranks.over_entries(torch.cat(squares, 1)).sqrt()
    scales_F = weights_F / lengths_F.where(lengths_F > 0, torch.inf)
    out_N = torch.zeros_like(direction_N)
    for held, rows_M, scale_F in zip(moved, rows, scales_F.split(counts), strict=True):
        out_N[held.own] = (double(direction_N[held.own]) * scale_F[rows_M]).to(out_N)
    return out_N


def orthogonal_to(first_N: Tensor, second_N: Tensor, ranks: Ranks = ALONE) -> tuple[Tensor, float]:
    """(Δ₂ − c Δ₁, c) with the c that makes it orthogonal to Δ₁.

    >>> d_N, c = orthogonal_to(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]))
    >>> d_N.tolist(), c
    ([0.0000, 3.0000], 0.5000)
    """
    a_N, b_N = double(first_N), double(second_N)
    share = float(ranks.dot(a_N, b_N) / ranks.dot(a_N, a_N))
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


def principal(offsets: Sequence[Tensor], count: int, ranks: Ranks = ALONE) -> Principal:
    """Principal directions of weights that lie at θ + offset, from the Gram matrix of the offsets.

    Args:
        offsets: of the checkpoints in their order; one of them may be θ itself, with an offset of zero.
        count: directions at most; fewer where the series has no variance in more.
        ranks: the processes that hold the offsets.
    """
    gram_KK = ranks.over_entries(
        torch.stack([torch.stack([_dot(a_N, b_N) for b_N in offsets]) for a_N in offsets])
    )
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
