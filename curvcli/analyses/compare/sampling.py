"""Whether two sets of data differ by more than sampling: loss, gradient and λ_max on both."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvcli.analyses.compare.paired import CERTAIN, FEWEST, PIECES, pieces
from curvcli.analyses.compare.result import Difference, GradientDifference, Sampling
from curvcli.linalg.statistics.gradient_noise import noise_estimates
from curvcli.linalg.vectors import double
from curvcli.objective.objective import Objective
from curvcli.operators.signals.gradient_flow import flow


def sampling(a: Objective, b: Objective, tops: tuple[Any, Any] | None) -> Sampling:
    """The differences B − A.

    Args:
        a: on the first data.
        b: on the other data.
        tops: the largest eigenvalue of both, with its standard error over batches.
    """
    losses = [_mean(o) for o in (a, b)]
    loss = _difference(losses[1][0] - losses[0][0], [e for _, e in losses])
    sharpness = None
    if tops is not None:
        errors = [top.batch_standard_error for top in tops]
        sharpness = _difference(tops[1].value - tops[0].value, errors)
    return Sampling(loss, gradient_difference(a, b), sharpness)


def _difference(difference: float, errors: list[float | None]) -> Difference:
    """Of two independent figures."""
    known = [e for e in errors if e is not None]
    if len(known) < len(errors):
        return Difference(difference, None, None)
    error = math.hypot(*known)
    return Difference(difference, error, abs(difference) > CERTAIN * error)


def _mean(objective: Objective) -> tuple[float, float | None]:
    """Mean loss of the data without weight decay, and its standard error over pieces of the data."""
    size = max(1, math.ceil(objective.samples / PIECES)) if objective.splittable else None
    with torch.no_grad(), objective.evaluation():
        found = [objective.terms(objective.model, p.data) for p in pieces(objective, size)]
    sums, weights = np.array([float(s) for s, _ in found]), np.array([float(w) for _, w in found])
    mean, n = float(sums.sum() / weights.sum()), len(found)
    if n < FEWEST:
        return mean, None
    squares = float(((sums - weights * mean) ** 2).sum())
    return mean, math.sqrt(n / (n - 1) * squares) / float(weights.sum())


def gradient_difference(a: Objective, b: Objective) -> GradientDifference:
    """‖g_B − g_A‖² beside tr Σ_A/N_A + tr Σ_B/N_B, which sampling alone makes it on average.

    Two sets of one distribution stay below 1 + 3√2 times that: √2 is the relative deviation of the square where all
    noise lies in one direction, the widest there is.
    """
    gradients, expected = [], 0.0
    for objective in (a, b):
        found = flow(objective, details=False)
        gradients.append(_flat(found.gradient))
        noise = None
        if found.gram_TPP is not None:
            gram_1PP = torch.stack(found.gram_TPP).sum(0)[None].numpy()
            (noise,) = noise_estimates(gram_1PP, np.array(found.part_samples, np.float64))
        expected = math.nan if noise is None else expected + noise.trace.value / objective.samples
    ranks = a.ranks
    distance = float(ranks.norm(gradients[1] - gradients[0]))
    size = float(ranks.norm(gradients[0]) * ranks.norm(gradients[1]))
    cosine = float(ranks.dot(gradients[0], gradients[1])) / size if size else None
    if not math.isfinite(expected):
        return GradientDifference(distance, None, cosine, None)
    limit = (1 + CERTAIN * math.sqrt(2)) * expected
    return GradientDifference(distance, math.sqrt(expected), cosine, distance**2 > limit)


def _flat(gradient: list[Tensor]) -> Tensor:
    return torch.cat([double(g).flatten().cpu() for g in gradient])
