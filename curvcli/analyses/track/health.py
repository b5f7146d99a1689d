"""The health of one checkpoint besides its curvature: dead units, ranks, noise of the gradient, loss at chance."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from curvcli.analyses.shared.subject import Subject
from curvcli.linalg.statistics.gradient_noise import noise_estimates
from curvcli.linalg.vectors import double
from curvcli.machine.private import outside_transforms
from curvcli.objective.objective import Objective
from curvcli.operators.signals.gradient_flow import flow
from curvcli.operators.surface.rollout import dead_units

# Singular values of larger matrices take longer than the eigenvalues of the Hessian.
_LARGEST = 1 << 22
# Samples (or tokens) whose features are looked at.
_ROWS = 2048
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
        weight_ranks(objective.model),
        feature_rank(objective),
        scale,
        error,
    )


def effective_rank(matrix: Tensor) -> float | None:
    """exp of the entropy of σ / Σσ (Roy & Vetterli, EUSIPCO 2007): k for k equal singular values; None of zero.

    >>> round(effective_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0]))), 6)
    2.0
    """
    values = torch.linalg.svdvals(double(matrix))
    total = float(values.sum())
    if not math.isfinite(total) or total <= 0:
        return None
    share = values / total
    return math.exp(-float(torch.xlogy(share, share).sum()))


def weight_ranks(model: nn.Module) -> dict[str, float]:
    """Effective rank of the weights of every linear and convolutional layer, kernels as rows."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _LINEAR) and module.weight.numel() <= _LARGEST:
            rank = effective_rank(module.weight.detach().flatten(1))
            if rank is not None:
                found[name or "weight"] = rank
    return found


def feature_rank(objective: Objective) -> float | None:
    """Effective rank of what enters the last linear layer, around its mean over the samples."""
    parts: list[Tensor] = []
    with _last_inputs(objective.model) as seen, torch.no_grad(), objective.evaluation():
        for batch in objective.batches:
            seen.clear()
            objective.terms(objective.model, batch.data)
            parts += seen
            if sum(map(len, parts)) >= _ROWS:
                break
    if len({part.shape[1] for part in parts}) != 1:
        return None
    together = torch.cat(parts)[:_ROWS]
    return effective_rank(together - together.mean(0)) if len(together) > 1 else None


@contextmanager
def _last_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of linear layers, as rows, in the order in which they are called."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() > 1:
            seen[:] = [double(inputs[0].detach().flatten(0, -2)[:_ROWS])]

    hook = outside_transforms(keep)
    handles = [
        m.register_forward_pre_hook(hook) for m in model.modules() if isinstance(m, nn.Linear)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


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
