"""Leading singular values of many matrices at once, by Golub-Kahan-Lanczos bidiagonalisation.

Beside the recurrence (`linalg.bidiagonal`) a look at the deflated matrix finds copies of singular values, which
a single Krylov space cannot contain, and one more product with A and Aᵀ gives every triplet its true residual.

Shapes: ``S`` matrices, each ``(M, N)``; ``K`` triplets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.linalg.operator import ROUNDING, SMALL
from curvcli.linalg.svd.bidiagonal import BatchedOperator, Bidiagonalisation, Pairs, without
from curvcli.linalg.vectors import double

# Rounds of looking for copies of singular values: each finds one more of every multiple value.
_ROUNDS = 16


class Transposed:
    """The transposed maps."""

    def __init__(self, op: BatchedOperator) -> None:
        self._op = op
        self.count, self.rows, self.columns = op.count, op.columns, op.rows
        self.dtype, self.device = op.dtype, op.device

    def jvp(self, v_SN: Tensor) -> Tensor:
        """Aᵀ v."""
        return self._op.vjp(v_SN)

    def vjp(self, u_SM: Tensor) -> Tensor:
        """A u."""
        return self._op.jvp(u_SM)


class _Deflated:
    """(1 − U Uᵀ) A (1 − V Vᵀ): A without the triplets that are known."""

    def __init__(self, op: BatchedOperator, known: Pairs) -> None:
        self._op, self._known = op, known
        self.count, self.rows, self.columns = op.count, op.rows, op.columns
        self.dtype, self.device = op.dtype, op.device

    def jvp(self, v_SN: Tensor) -> Tensor:
        known = self._known
        return without(known.left_SKM, self._op.jvp(without(known.right_SKN, v_SN)))

    def vjp(self, u_SM: Tensor) -> Tensor:
        known = self._known
        return without(known.right_SKN, self._op.vjp(without(known.left_SKM, u_SM)))


@dataclass(frozen=True)
class Triplets:
    """Leading singular triplets of every matrix, largest first."""

    values_SK: Tensor
    """θ, float64 on the CPU."""
    bounds_SK: Tensor
    """ρ: a singular value lies within ρ of θ; of the recurrence, without the rounding of products."""
    converged_SK: Tensor
    """Whether ρ ≤ tol · max(θ, 0.01 θ₁)."""
    left_SKM: Tensor
    right_SKN: Tensor
    steps: int
    """Products with A, and as many with Aᵀ."""
    complete: bool
    """False where the steps ran out or the run was stopped."""
    copies_found: int
    """Matrices in which only the look at the deflated matrix found a wanted value."""
    rechecked: bool
    """Whether that look was taken (or the space was exhausted, so that nothing can be missing)."""
    basis_SJM: Tensor
    """Orthonormal vectors of ℝᵐ from the first run."""
    captured_S: Tensor
    """‖Qᵀ A‖_F² of that basis Q, known from the recurrence: a part of ‖A‖_F²."""


def golub_kahan(
    op: BatchedOperator,
    top: int,
    *,
    tol: float = 1e-3,
    max_steps: int = 100,
    recheck: int = 6,
    seeds: Sequence[int] | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Triplets:
    """The ``top`` largest singular values of every matrix, with residual bounds.

    Args:
        op: the matrices.
        top: how many; at most min(m, n).
        tol: a triplet has converged when ρ ≤ tol · max(θ, 0.01 θ₁).
        max_steps: products with A at most, those of the look for copies included.
        recheck: steps on the deflated matrix that look for copies; 0: none.
        seeds: one for each matrix, of the vectors drawn for it (on the CPU).
        stop: asked after each step; True ends the run with what is known.
        progress: told the number of steps so far.

    >>> from types import SimpleNamespace
    >>> a = torch.tensor([[0.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    >>> op = SimpleNamespace(
    ...     count=1, rows=2, columns=2, dtype=a.dtype, device=a.device,
    ...     jvp=lambda v: v @ a.T, vjp=lambda u: u @ a,
    ... )
    >>> golub_kahan(op, top=2).values_SK.tolist()
    [[3.000000, 2.000000]]
    """
    # Start on the shorter side: n steps exhaust it, and no start vector has a part in a null space.
    flip = op.columns > op.rows
    work: BatchedOperator = Transposed(op) if flip else op
    seeds = range(op.count) if seeds is None else seeds
    top = min(top, work.columns)
    first = Bidiagonalisation(work, max_steps, seeds)
    complete = first.advance(top, tol, stop, progress)
    found, steps, copies = first.pairs(top), first.steps, 0
    rechecked = first.exhausted or top == work.columns
    for attempt in range(1, _ROUNDS + 1):
        if not (complete and recheck) or rechecked or steps >= max_steps:
            break
        start = Bidiagonalisation(
            _Deflated(work, found), max_steps - steps, [s + 7919 * attempt for s in seeds], found
        )
        look = _look(start, found, top, tol, recheck, stop, _after(steps, progress))
        complete, found = look.complete, look.found
        copies = max(copies, look.missed)
        rechecked = complete and (not look.missed or start.exhausted)
        steps += start.steps
    found = found.first(top)
    floor_SK = torch.maximum(found.values_SK, SMALL * found.values_SK[:, :1])
    left, right = found.left_SKM, found.right_SKN
    return Triplets(
        values_SK=found.values_SK,
        bounds_SK=found.bounds_SK,
        converged_SK=found.bounds_SK <= tol * floor_SK,
        left_SKM=right if flip else left,
        right_SKN=left if flip else right,
        steps=steps,
        complete=complete,
        copies_found=copies,
        rechecked=rechecked,
        # A V = U B and Aᵀ U = V Bᵀ + β v eₖᵀ.
        basis_SJM=first.right if flip else first.left,
        captured_S=first.captured(with_rest=not flip),
    )


class _Look(NamedTuple):
    """What a look for copies found."""

    found: Pairs
    missed: int
    complete: bool


def _look(
    run: Bidiagonalisation,
    found: Pairs,
    top: int,
    tol: float,
    steps: int,
    stop: Callable[[], bool],
    progress: Callable[[int], None],
) -> _Look:
    """Whether the deflated matrix has singular values that belong to the ``top`` largest; they are added."""
    complete = run.advance(0, tol, stop, progress, steps)
    largest_S = run.pairs(1).values_SK[:, 0]
    # Rounding leaves this much of what was deflated.
    rounding_S = ROUNDING * torch.finfo(run.op.dtype).eps * found.values_SK[:, 0]
    missed_S = (largest_S > found.values_SK[:, top - 1] * (1 + tol)) & (largest_S > rounding_S)
    if bool(missed_S.any()):
        complete = run.advance(top, tol, stop, progress)
        found = found.joined(run.pairs(top))
    return _Look(found, int(missed_S.sum()), complete)


def true_residuals(op: BatchedOperator, found: Triplets) -> tuple[Tensor, Tensor]:
    """Rayleigh quotients uᵀAv and residuals by one more product with A and Aᵀ for each triplet.

    (u, v)/√2 is a unit vector and θ = uᵀAv its Rayleigh quotient for [[0, A], [Aᵀ, 0]], whose eigenvalues are
    ± the singular values (and zeros): some singular value lies within √((‖Av − θu‖² + ‖Aᵀu − θv‖²)/2) of θ,
    widened by the rounding of the products.

    Returns:
        values and residuals, each of shape ``(S, K)``, float64 on the CPU.
    """
    values, residuals = [], []
    eps = ROUNDING * torch.finfo(op.dtype).eps
    for k in range(found.values_SK.shape[1]):
        u_SM, v_SN = found.left_SKM[:, k], found.right_SKN[:, k]
        av_SM, atu_SN = op.jvp(v_SN), op.vjp(u_SM)
        theta_S1 = ((u_SM * av_SM).sum(1) + (v_SN * atu_SN).sum(1))[:, None] / 2
        squares_S = double(av_SM - theta_S1 * u_SM).square().sum(1)
        squares_S += double(atu_SN - theta_S1 * v_SN).square().sum(1)
        values.append(theta_S1[:, 0].cpu().double())
        residuals.append((squares_S / 2).sqrt().cpu() + eps * found.values_SK[:, 0])
    return torch.stack(values, 1), torch.stack(residuals, 1)


def _after(steps: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    return lambda more: progress(steps + more)
