"""The same products in float64 on a few samples: how much of a product is rounding, or a wrong derivative."""

import copy
import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from curvcli.errors import CurvError
from curvcli.linalg.vectors import double
from curvcli.machine.containers import move
from curvcli.machine.device import with_double
from curvcli.objective.batch import Batch
from curvcli.operators.curvature.curvature import Curvature

C = TypeVar("C", bound=Curvature[Any])

# No kink lies within the first of these steps; the others stand out from the rounding of networks that compute parts
# in float32 whatever they are given.
STEPS = (1e-7, 1e-5, 1e-4, 1e-3, 1e-2)
# Bytes of the copy for each parameter: weights, vectors and gradients in float64.
_BYTES = 8 * 8
# Samples for the rounding of products at least, fewer where each has many loss terms (tokens).
_SAMPLES, _TERMS = 4, 64
# Some samples stand for all.
_SOME_SAMPLES = 3


def error_in_double(
    operator: Curvature[Any], v_N: Tensor, enough: float, samples: int = 4
) -> tuple[float, float] | None:
    """`Curvature.check` of a product in float64, over a tiny step on a few samples, and that step.

    Kinks of the surface (ReLU) make a derivative and a difference differ over any finite step that crosses one; a
    step of 1e-7 crosses none, so that what is left is an error of a derivative, or the rounding of a network that
    computes parts in float32 (losses and normalisations of language models). That falls as the step grows: longer
    ones are tried until the error is at most ``enough``. A wrong derivative differs over all of them.

    Returns:
        The smallest error and its step; None where this cannot be tried (the model cannot be copied, or runs only in
        its own dtype).
    """
    best: tuple[float, float] | None = None
    try:
        twin, _ = _twin(operator, samples)
        wide_N = double(v_N)
        exact_N = twin.matvec(wide_N)
        for step in STEPS:
            found = twin.check(wide_N, exact_N, length=step)
            if found is not None and (best is None or found < best[0]):
                best = found, step
            if best is not None and best[0] <= enough:
                break
    except _UNABLE:
        return best
    return best


def rounding_in_double(operator: Curvature[Any], vectors_KN: Tensor) -> float | None:
    """How far the Rayleigh quotients may be off because of an error that all products share.

    Such an error E = H̃ − H of the computed matrix (a cancellation in σ(1 − σ), say) is symmetric: it shows in no
    asymmetry and in no residual, and shifts θ_i by v_iᵀ E v_i. With w = Σ ± v_k one product in float64 gives all
    v_iᵀ E w = Σ_k ± v_iᵀ E v_k; the largest of them, times three because some samples stand for all, is returned.

    Returns:
        None where this cannot be tried; 0 for an operator in float64.
    """
    if operator.dtype == torch.float64:
        return 0.0
    generator = torch.Generator().manual_seed(0)
    signs_K = torch.randint(0, 2, (len(vectors_KN),), generator=generator).to(vectors_KN) * 2 - 1
    w_N = signs_K @ vectors_KN
    objective = operator.objective
    batch = objective.batches[0]
    each = objective.weight / max(1, objective.samples)
    samples = max(batch.size // 16, min(_SAMPLES, math.ceil(_TERMS / max(each, 1))))
    try:
        twin, piece = _twin(operator, samples)
        truth_N = twin.contribution(twin.objective.batches[0], double(w_N)[None])[0]
        # Both as a mean over the loss terms of the piece.
        share = operator.objective.weight / twin.objective.weight
        computed_N = double(operator.contribution(piece, w_N[None])[0]) * share
    except _UNABLE:
        return None
    shifts_K = double(vectors_KN) @ (computed_N - truth_N)
    shift = float(shifts_K.abs().max())
    # Masks with the lowest double are -inf where the network computes in single precision.
    return _SOME_SAMPLES * shift if math.isfinite(shift) else None


_UNABLE = (CurvError, RuntimeError, TypeError, NotImplementedError, AttributeError, ValueError)


def _twin(operator: C, samples: int) -> tuple[C, Batch]:
    """The operator on a float64 copy of the model and samples from all over the first batch, and these.

    Raises:
        RuntimeError: a copy does not fit.
    """
    objective = operator.objective
    if operator.n * _BYTES > operator.room():
        raise RuntimeError("a copy of the model in float64 does not fit in memory")
    piece = objective.batches[0]
    if operator.micro_batch is not None:
        # Twice the bytes, and on a CPU as much again: its float64 convolutions unfold their input.
        samples = min(samples, max(1, operator.micro_batch // 4))
    if objective.splittable and piece.size > samples:
        piece = piece.take(range(0, piece.size, piece.size // samples)[:samples])
    device = with_double(objective.device)
    data = move(piece.data, device, torch.float64)
    model = copy.deepcopy(objective.model).to(device).double()
    twin = objective.twin(model, [Batch(data, piece.size, piece.splittable)])
    return operator.twin(twin), piece
