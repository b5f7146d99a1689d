"""The health of one checkpoint besides its curvature: dead units, ranks, noise of the gradient, loss at chance."""

from typing import NamedTuple

import numpy as np
import torch

from curvcli.analyses.shared.subject import Subject
from curvcli.linalg.statistics.gradient_noise import noise_estimates
from curvcli.objective.objective import Objective
from curvcli.operators.signals.gradient_flow import flow
from curvcli.operators.signals.ranks import feature_rank, weight_ranks
from curvcli.operators.surface.rollout import dead_units

# Singular values of larger matrices take longer than the eigenvalues of the Hessian.
_LARGEST = 1 << 22


class Health(NamedTuple):
    """Fields of a `TrackPoint`; see there."""

    dead_fraction: float | None
    accuracy: float | None
    at_chance: bool
    statistics: float | None
    wrong: bool
    suspicions: list[str]
    weight_rank: dict[str, float]
    feature_rank: float | None
    noise_scale: float | None
    noise_scale_error: float | None


def health_of(member: Subject) -> Health:
    """Two passes over the data, one of them with a gradient, and the singular values of the weights."""
    objective, sane = member.objective, member.forward_pass()
    scale, error = noise_scale(objective, member.spec.memory_bytes)
    return Health(
        dead_units(objective).fraction,
        sane.accuracy,
        sane.at_chance,
        max((r.distance for r in sane.running), default=None),
        sane.wrong,
        sane.suspicions(getattr(objective.terms, "name", None)),
        weight_ranks(objective, _LARGEST),
        feature_rank(objective),
        scale,
        error,
    )


def noise_scale(objective: Objective, memory: int | None) -> tuple[float | None, float | None]:
    """(tr Σ / |G|², its standard error) in samples (McCandlish et al. 2018); None where |G|² is within its noise."""
    found = flow(objective, memory=memory, details=False)
    if found.gram_TPP is None:
        return None, None
    gram_1PP = torch.stack(found.gram_TPP).sum(0)[None].numpy()
    (noise,) = noise_estimates(gram_1PP, np.array(found.part_samples, np.float64))
    if noise is None or noise.critical_batch is None:
        return None, None
    square = noise.gradient_square
    if square.standard_error is not None and square.value < 2 * square.standard_error:
        return None, None
    return noise.critical_batch.value, noise.critical_batch.standard_error
