"""Which of two networks is better on this data: losses of the same samples, subtracted pair by pair."""

import math

import torch
from torch import Tensor

from curvcli.analyses.compare.result import Paired
from curvcli.linalg.statistics.student import quantile
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.hessian import Hessian

# Pieces of the data whose losses are compared, and the fewest that tell an error.
PIECES, FEWEST = 64, 5
# Standard errors beyond which a difference is no sampling.
CERTAIN = 3.0
# Groups of a single batch whose curvatures are compared, and the confidence of three standard errors of many.
_GROUPS, _CONFIDENCE = 16, 0.9973


def identical(a: Objective, b: Objective) -> bool:
    """Whether weights and buffers are the same to the bit."""
    pairs = [(dict(m.named_parameters()) | dict(m.named_buffers())) for m in (a.model, b.model)]
    same = pairs[0].keys() == pairs[1].keys() and all(
        t.shape == pairs[1][n].shape
        and t.dtype == pairs[1][n].dtype
        and torch.equal(t.detach(), pairs[1][n].detach())
        for n, t in pairs[0].items()
    )
    return not a.ranks.largest(int(not same))


def paired(a: Objective, b: Objective) -> Paired | None:
    """L(B) − L(A) and its sampling error; None where the batches are not the same samples."""
    if [batch.size for batch in a.batches] != [batch.size for batch in b.batches]:
        return None
    size = max(1, math.ceil(a.samples / PIECES)) if a.splittable and b.splittable else None
    sums, weights = [], []
    for first, second in zip(pieces(a, size), pieces(b, size), strict=True):
        with torch.no_grad(), a.evaluation():
            total_a, count = a.terms(a.model, first.data)
        with torch.no_grad(), b.evaluation():
            total_b, _ = b.terms(b.model, second.data)
        sums.append(float(total_b) - float(total_a))
        weights.append(count)
    whole, n = sum(weights), len(sums)
    difference = sum(sums) / whole
    error = None
    if n >= FEWEST:
        squares = sum((s - w * difference) ** 2 for s, w in zip(sums, weights, strict=True))
        error = math.sqrt(n / (n - 1) * squares) / whole
    better = None
    if error is not None and abs(difference) > CERTAIN * error:
        better = "b" if difference < 0 else "a"
    return Paired(difference, error, n, better)


def sharpness_differs(a: Objective, b: Objective, vectors: tuple[Tensor, Tensor]) -> bool | None:
    """Whether vᵀHv of each one's leading eigenvector differs beyond sampling, group by group of the same samples.

    None where the batches are not the same, or too few.
    """
    if [batch.size for batch in a.batches] != [batch.size for batch in b.batches]:
        return None
    weights, quotients = [], []
    for objective, v_N in zip((a, b), vectors, strict=True):
        parts = list(Hessian(objective).parts(v_N[None], _GROUPS, 1))
        weights = [part.weight for part in parts]
        quotients.append([float(objective.ranks.dot(v_N, part.products_KN[0])) for part in parts])
    sums = [second - first for first, second in zip(*quotients, strict=True)]
    whole, n = sum(weights), len(sums)
    if n < FEWEST:
        return None
    mean = sum(sums) / whole
    squares = sum((s - w * mean) ** 2 for s, w in zip(sums, weights, strict=True))
    error = math.sqrt(n / (n - 1) * squares) / whole
    return bool(abs(mean) > quantile(_CONFIDENCE, n - 1) * error)


def pieces(objective: Objective, size: int | None) -> list[Batch]:
    """The batches, cut into pieces of ``size`` samples; None: whole."""
    return [p for batch in objective.batches for p in batch.pieces(size or batch.size)]
