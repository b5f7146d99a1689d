"""How much the eigenvalues vary with the data: the spread of vᵀHv over batches, or over groups of samples.

Shapes: ``N`` parameters, ``K`` vectors, ``B`` parts of the data.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvcli.operators.curvature.curvature import Curvature

# Of a single batch, one sample in so many is looked at (all, where that leaves too few).
_SHARE = 8


class Spread(NamedTuple):
    """Rayleigh quotients over parts of the data."""

    standard_errors_K: list[float] | None
    """Of vᵀHv, by the spread of its value over the parts; None where there is one part only."""
    products_KN: Tensor | None
    """H V, where the parts were all of the data."""


def spread(
    operator: Curvature[Any],
    vectors_KN: Tensor,
    groups: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Spread:
    """Spread of the Rayleigh quotients of K unit vectors over the data.

    Several batches are compared as they are, with their loss terms as weights. Of a single batch ``groups`` groups of
    samples are compared, evenly taken from all over it, together an eighth of it: the standard error of a mean over
    all samples follows from that of groups of some, as long as samples are exchangeable.

    Args:
        operator: H.
        vectors_KN: unit vectors.
        groups: of a single batch; 0: no spread is asked for.
        progress: told the index of each part; may raise.
    """
    objective = operator.objective
    if groups == 0 or not (len(objective.batches) > 1 or objective.splittable):
        return Spread(None, None)
    several = len(objective.batches) > 1
    products_KN = torch.zeros_like(vectors_KN) if several else None
    weights, quotients = [], []
    for index, part in enumerate(operator.parts(vectors_KN, groups, _SHARE)):
        progress(index)
        if products_KN is not None:
            products_KN += part.products_KN
        share = part.weight / objective.weight
        weights.append(share)
        quotient_K = operator.ranks.over_entries(torch.linalg.vecdot(vectors_KN, part.products_KN))
        quotients.append(quotient_K.cpu().double() / share)
    if products_KN is not None and objective.weight_decay:
        products_KN += operator.decay_product(vectors_KN)
    return Spread(_standard_errors(weights, torch.stack(quotients)), products_KN)


def _standard_errors(weights: list[float], quotients_BK: Tensor) -> list[float] | None:
    """Of the weighted mean of all data, from parts that hold the shares ``weights`` of it."""
    b = len(weights)
    if b < 2:
        return None
    share_B1 = torch.tensor(weights, dtype=torch.float64)[:, None]
    seen = float(share_B1.sum())
    mean_K = (share_B1 * quotients_BK).sum(0) / seen
    # The mean over the parts has this variance; that over all data has 1 / seen times as many samples.
    variance_K = (share_B1 / seen * (quotients_BK - mean_K)).square().sum(0) * b / (b - 1)
    return [math.sqrt(v) for v in (variance_K * min(1.0, seen)).tolist()]
