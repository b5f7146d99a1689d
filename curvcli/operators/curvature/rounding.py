"""How far an eigenvalue is off because products are computed in floating point.

Such an error E = H̃ − H of the computed matrix (a cancellation in σ(1 − σ), say) is symmetric: it shows in no asymmetry
and in no residual. It moves the eigenvalues of VᵀHV by at most ‖M‖₂ with M = VᵀEV (Weyl), and for random signs s the
mean square of M s = VᵀE Σ s_k v_k is ‖M‖_F²: products with two draws of signs tell it.

Shapes: ``N`` parameters, ``K`` vectors, ``R`` draws.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.stochastic.probes import random_signs
from curvcli.linalg.vectors import double, euclidean_norms
from curvcli.machine.containers import move
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.double import UNABLE, twin_in_double

# ‖M s‖ of one draw of signs is less than a third of ‖M‖_F once in four where M has rank one; of two draws rarely.
_DRAWN = 3
# Errors up to this share of ‖H‖ move eigenvalues to first order only.
_SMALL = 1e-3
# By so many units in the last place weights are moved in double precision: fewer leave saturated units as they are, and
# so many move no eigenvalue by more than a millionth of a millionth.
_UNITS = 1024
# Losses whose curvature in the outputs is p (1 − p).
_PROBABILITIES = ("cross_entropy", "token_cross_entropy", "nll", "bce_with_logits")
# Of twice as many samples and more some stand for all: float64 convolutions of a CPU would take a sixth of a whole run.
_ALL = 32
# Samples at a time in float64, relative to those that fit in the operator's own precision: twice the bytes, and on a
# CPU as much again, since its float64 convolutions unfold their input.
_SHARE = 8


class ProductError(NamedTuple):
    """What the rounding of some products is."""

    error_RN: Tensor
    """E w for each w."""
    by: Literal["float64", "rounded weights"]
    """The product was repeated in float64, or at weights whose last digit was moved at random."""


def shift(vectors_KN: Tensor, error_RN: Tensor, norm: float, ranks: Ranks = ALONE) -> float:
    """How far E moves eigenvalues, from E Σ ± v_k / √K of each draw of signs.

    While E is small beside ‖H‖, those of VᵀHV by ‖VᵀEV‖, to first order; beyond that all of them by up to ‖E‖ (Weyl).

    Args:
        vectors_KN: the v_k.
        error_RN: E Σ ± v_k / √K.
        norm: ‖H‖.
        ranks: the processes that hold the vectors.
    """
    factor = _DRAWN * math.sqrt(len(vectors_KN))
    whole = factor * float(ranks.norms(error_RN).max())
    if whole > _SMALL * norm:
        return whole
    # One by one: all of them in float64 are twice the memory of the vectors.
    inside_KR = torch.cat([ranks.inner(v_N[None].to(error_RN), error_RN) for v_N in vectors_KN])
    return factor * float(euclidean_norms(inside_KR.T.contiguous()).max())


def product_error(
    operator: Curvature[Any],
    w_RN: Tensor,
    product_RN: Tensor,
    between: Callable[[], None] = lambda: None,
) -> ProductError | None:
    """The rounding E w of products, from one more product each over all data.

    In single precision it is repeated in double. In double precision, or where the network cannot be copied or runs in
    its own dtype only, it is repeated at weights whose last digits are moved: there every intermediate result is
    rounded otherwise.

    Args:
        operator: H.
        w_RN: the vectors.
        product_RN: H w of each as computed.
        between: called between two pieces of the data, in each process as often as it has pieces; may raise.

    Returns:
        None where neither gives finite numbers.
    """
    if operator.dtype != torch.float64:
        try:
            error_RN = _against_double(operator, w_RN, product_RN, between)
        except UNABLE:
            error_RN = torch.tensor(math.nan)
        # Masks with the lowest double are -inf where the network computes in single precision.
        if operator.ranks.all_finite(error_RN):
            return ProductError(error_RN, "float64")
        del error_RN  # its memory is needed
    error_RN = _at_rounded_weights(operator, w_RN, between).neg_()
    error_RN += _without_decay(operator, w_RN, product_RN)
    return (
        ProductError(error_RN, "rounded weights") if operator.ranks.all_finite(error_RN) else None
    )


def saturation(objective: Objective) -> float:
    """Relative error of the curvature where a loss of probabilities has almost vanished.

    ∂²ℓ/∂z² is p (1 − p), and 1 − p is off by eps / 2 however small it is, always in the same way. Since 1 − p ≤ −log p,
    this is at most eps / L of the whole. Another precision would show it; other digits of the weights do not.
    """
    name = getattr(objective.terms, "name", "")
    if name not in _PROBABILITIES or objective.loss <= 0:
        return 0.0
    return float(torch.finfo(objective.dtype).eps) / objective.loss


def _without_decay(operator: Curvature[Any], w_RN: Tensor, product_RN: Tensor) -> Tensor:
    if not operator.objective.weight_decay:
        return product_RN
    return product_RN - operator.decay_product(w_RN)


def _against_double(
    operator: Curvature[Any], w_RN: Tensor, product_RN: Tensor, between: Callable[[], None]
) -> Tensor:
    """H w less the same in float64; of much data from every k-th sample, times k."""
    twin = twin_in_double(operator, 1, len(w_RN))
    twin.objective = replace(twin.objective, weight=operator.objective.weight)
    wide_RN = double(w_RN)
    every = max(1, operator.objective.samples // _ALL) if operator.objective.splittable else 1
    if every == 1:
        error_RN = double(_without_decay(operator, w_RN, product_RN))
    else:
        error_RN = torch.zeros_like(wide_RN)
        for batch in _some(operator, every):
            error_RN += double(operator.contribution(batch, w_RN))
    for piece in _pieces(operator, _some(operator, every)):
        between()
        data = move(piece.data, wide_RN.device, torch.float64)
        error_RN -= twin.contribution(Batch(data, piece.size, piece.splittable), wide_RN)
    return error_RN.mul_(every)


def _at_rounded_weights(
    operator: Curvature[Any], w_RN: Tensor, between: Callable[[], None]
) -> Tensor:
    """H at weights whose last digits are moved at random, times w, without weight decay."""
    own = operator.ranks.entries(operator.n)
    step_N = operator.objective.flat()
    units = _UNITS if operator.dtype == torch.float64 else 1
    step_N *= random_signs(operator.n, torch.Generator().manual_seed(0), step_N)[own]
    step_N *= units * torch.finfo(step_N.dtype).eps
    out_RN = None
    with operator.objective.moved(step_N):
        for batch in operator.objective.batches:
            between()
            part_RN = operator.contribution(batch, w_RN)
            out_RN = part_RN if out_RN is None else out_RN.add_(part_RN)
    assert out_RN is not None
    return out_RN


def _some(operator: Curvature[Any], every: int) -> Iterator[Batch]:
    """Every k-th sample of the data, whatever the sizes of its batches."""
    start = 0
    for batch in operator.objective.batches:
        places = range(-start % every, batch.size, every)
        start += batch.size
        if places:
            yield batch.take(places) if every > 1 else batch


def _pieces(operator: Curvature[Any], batches: Iterable[Batch]) -> Iterator[Batch]:
    """Pieces that take no more memory in float64 than those of the operator; whole batches where none may be cut."""
    if not operator.objective.splittable:
        yield from batches
        return
    largest = max(batch.size for batch in operator.objective.batches)
    for batch in batches:
        yield from batch.pieces(max(1, (operator.micro_batch or largest) // _SHARE))
