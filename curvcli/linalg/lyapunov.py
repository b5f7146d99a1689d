"""Lyapunov exponents of a product of Jacobians, by repeated QR decompositions.

Benettin, Galgani, Giorgilli & Strelcyn, Meccanica 15 (1980): carry K orthonormal vectors along, Z = J_t Q, and
decompose Z = Q' R after each step; λ_i is the mean of log R_ii over the steps.

Shapes: ``T`` steps, ``B`` samples, ``D`` length of the state, ``K`` exponents.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# The first part of the steps, in which the vectors turn into the leading directions, is not counted.
BURN_IN = 0.2
# Consecutive steps are not independent: the error is that of means over this many stretches.
BLOCKS = 8


class Lyapunov(NamedTuple):
    """Exponents per step (natural logarithm), largest first."""

    exponents_K: Tensor
    """Mean over samples and counted steps; −∞ where a direction is lost altogether."""
    errors_K: Tensor
    """The larger of two standard errors of that mean, over stretches of time and over samples; for the largest
    exponent also no less than what finite time leaves open, log ‖J_T ⋯ J_1‖ / T − λ₁ (0 in the limit)."""
    steps: int
    """Steps counted."""


def lyapunov(
    pushes: Iterable[tuple[Callable[[Tensor], Tensor], Tensor]],
    steps: int,
    start_BDK: Tensor,
) -> Lyapunov:
    """The K leading exponents along the trajectories of B samples.

    Args:
        pushes: for each step, in order, the map Z ↦ J_t Z for ``(B, D, K)`` and which samples take it.
        steps: how many there are.
        start_BDK: K vectors for each sample, any that are independent.
    """
    q_BDK, _ = torch.linalg.qr(start_BDK)
    skipped = min(int(BURN_IN * steps), steps - 1)
    logs, counts = [], []
    eye_KK = torch.eye(start_BDK.shape[2], dtype=q_BDK.dtype, device=q_BDK.device)
    product_BKK = eye_KK.expand(len(q_BDK), -1, -1)
    growth_B = torch.zeros(len(q_BDK), dtype=q_BDK.dtype, device=q_BDK.device)
    for step, (push, valid_B) in enumerate(pushes):
        following_BDK, r_BKK = torch.linalg.qr(push(q_BDK))
        q_BDK = torch.where(valid_B[:, None, None], following_BDK, q_BDK)
        if step >= skipped:
            log_BK = r_BKK.diagonal(dim1=1, dim2=2).abs().cpu().double().log()
            valid_B1 = valid_B.cpu()[:, None]
            # ‖R_T ⋯ R_1‖ is the norm of the product on the span of the vectors; kept near 1.
            product_BKK = torch.where(valid_B[:, None, None], r_BKK, eye_KK) @ product_BKK
            scale_B = torch.linalg.matrix_norm(product_BKK)
            growth_B = growth_B + scale_B.log()
            product_BKK = (
                product_BKK / scale_B.clamp(min=torch.finfo(scale_B.dtype).tiny)[:, None, None]
            )
            logs.append(torch.where(valid_B1, log_BK, 0.0))
            counts.append(valid_B1.double().expand_as(log_BK))
    logs_TBK, counts_TBK = torch.stack(logs), torch.stack(counts)
    exponents_K = logs_TBK.sum((0, 1)) / counts_TBK.sum((0, 1))
    samples_BK = logs_TBK.sum(0) / counts_TBK.sum(0)
    blocks = min(BLOCKS, len(logs_TBK))
    stretches = [
        part.sum((0, 1)) / count.sum((0, 1))
        for part, count in zip(
            logs_TBK.tensor_split(blocks), counts_TBK.tensor_split(blocks), strict=True
        )
    ]
    errors_K = torch.maximum(_standard_error(torch.stack(stretches)), _standard_error(samples_BK))
    growth_B = growth_B + torch.linalg.matrix_norm(product_BKK, ord=2).log()
    most_B = growth_B.cpu().double() / counts_TBK.sum(0)[:, 0]
    open_ = (most_B[torch.isfinite(most_B)].mean() - exponents_K[0]).abs()
    errors_K[0] = torch.maximum(errors_K[0], torch.nan_to_num(open_, 0.0))
    order_K = exponents_K.argsort(descending=True, stable=True)
    return Lyapunov(exponents_K[order_K], errors_K[order_K], len(logs_TBK))


def _standard_error(values: Tensor) -> Tensor:
    """Of the mean over the first axis; NaN entries (samples that took no step) are left out."""
    finite = values[torch.isfinite(values).all(1)]
    if len(finite) < 2:
        return torch.zeros(values.shape[1], dtype=values.dtype)
    return finite.std(0) / math.sqrt(len(finite))
