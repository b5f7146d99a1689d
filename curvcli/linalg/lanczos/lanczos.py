"""Thick-restart Lanczos with partial reorthogonalisation, for both ends of a spectrum.

Wu & Simon, SIAM J. Matrix Anal. Appl. 22 (2000), with four additions: breakdowns are tested relative
to the norm of the projected matrix and continued with a fresh direction; after convergence a fresh random
direction looks for copies of eigenvalues, which a single Krylov space cannot contain; the first,
unrestarted cycle yields a probabilistic bound on what was not seen (`linalg.reach`); and its vectors are
orthogonalised against the basis only where they have to be (`linalg.orthogonality`). The steps themselves are
in `linalg.factorization`, what they have led to in `linalg.ritz`.

Shapes: ``N`` length of a vector, ``M`` size of the basis, ``K`` pairs asked for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from curvcli.errors import CurvError, NoAnswerError
from curvcli.linalg.lanczos.factorization import (
    LanczosState,
    append_fresh,
    follow,
    outside,
    restart,
    start,
    step,
    suspend,
)
from curvcli.linalg.lanczos.lockstep import Request, answered
from curvcli.linalg.lanczos.reach import reach
from curvcli.linalg.lanczos.ritz import Spectrum, Wanted, neighbours, ritz
from curvcli.linalg.operator import Float64Array, Space, SymmetricOperator, ranks_of

Status = Literal["converged", "max_matvecs", "timeout", "interrupted"]

# Share of the residual asked for that a loss of orthogonality may add.
LOSS = 0.05


class Progress(NamedTuple):
    """How far a run has come."""

    matvecs: int
    converged: int
    wanted: int


@dataclass(frozen=True)
class LanczosResult:
    """Ritz pairs with their residual bounds, and what they say about the rest of the spectrum.

    Values are in the order of `Wanted.select`: top ones first, then bottom ones.
    """

    values_K: Float64Array
    """Ritz values."""
    bounds_K: Float64Array
    """ρ = β_m |s_mi| of each, plus what lost orthogonality may add: an eigenvalue lies within ρ of the Ritz value.

    Entries of a residual whose squares underflow do not show in its length, and may add √(n tiny): 1e-19 √n in float32.
    """
    converged_K: tuple[bool, ...]
    """Whether ρ ≤ tol · max(|θ|, 0.01 ‖T‖)."""
    top: int
    """How many of the pairs are top ones."""
    vectors_KN: Tensor
    """Ritz vectors, unit length, one a row."""
    status: Status
    matvecs: int
    restarts: int
    norm: float
    """‖T‖, the largest magnitude of a Ritz value: a lower bound on ‖A‖."""
    lower: float
    """With the probability asked for, no eigenvalue is smaller."""
    upper: float
    """With the probability asked for, no eigenvalue is larger."""
    ritz_values_M: Float64Array
    """All Ritz values of the last basis, ascending."""
    copies_found: int
    """Wanted values that only the look for missed copies brought to light."""
    rechecked: int
    """Products spent on that look."""
    tails: tuple[tuple[Tensor, Float64Array], ...]
    """The residuals by the recurrence: A v_i − θ_i v_i = Σ_t d_t c_ti, as (unit vector d_t, c_t of shape (K,))."""


def lanczos(
    op: SymmetricOperator,
    wanted: Wanted,
    *,
    tol: float = 1e-3,
    max_matvecs: int = 500,
    capacity: int = 200,
    seed: int = 0,
    probability: float = 1e-3,
    recheck: int = 8,
    state: LanczosState | None = None,
    stop: Callable[[], Status | None] = lambda: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> LanczosResult:
    """Eigenvalues at the ends of the spectrum of ``op``, each with a bound on its error.

    Args:
        op: a symmetric operator.
        wanted: which eigenvalues.
        tol: a pair has converged when ρ ≤ tol · max(|θ|, 0.01 ‖T‖).
        max_matvecs: products of this call after which it ends with what it has (``status`` says so).
        capacity: vectors kept at most; the run restarts within them. At least ``wanted.count + 3``,
            unless the space is smaller.
        seed: of the random start vector.
        probability: with which ``lower`` and ``upper`` may fail, both together.
        recheck: products spent after convergence on a fresh random direction, which finds copies of a
            multiple eigenvalue (one Krylov space contains each only once). 0 turns it off.
        state: an earlier state of the same operator, to go on from; it is updated in place.
        stop: asked before each product; a status ends the run with what is known so far.
        progress: told after each product.

    Raises:
        NonFiniteError: a product contains NaN or Inf.
        NoAnswerError: stopped before the first product.
        CurvError: ``capacity`` is too small.

    >>> from types import SimpleNamespace
    >>> a = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> op = SimpleNamespace(n=2, dtype=a.dtype, device=a.device, matvec=lambda v: a @ v)
    >>> lanczos(op, Wanted(top=1, bottom=1)).values_K.tolist()
    [3.000000, 1.000000]
    """
    request = lanczos_by_request(
        op,
        wanted,
        tol=tol,
        max_matvecs=max_matvecs,
        probability=probability,
        recheck=recheck,
        state=state or start(op, capacity, seed),
        stop=stop,
        progress=progress,
    )
    return answered(request, op.matvec)


def lanczos_by_request(
    op: Space,
    wanted: Wanted,
    *,
    state: LanczosState,
    tol: float = 1e-3,
    max_matvecs: int = 500,
    probability: float = 1e-3,
    recheck: int = 8,
    stop: Callable[[], Status | None] = lambda: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Request[LanczosResult]:
    """`lanczos` by reverse communication: asks for each product of A with the vector that it yields.

    So that several runs can share what their products have in common, see `linalg.lockstep`.
    """
    needed = min(op.n, wanted.count + 3)
    if state.basis.capacity < needed:
        raise CurvError(
            f"{wanted.count} eigenvalues need a basis of at least {needed} vectors, "
            f"but only {state.basis.capacity} fit",
            "raise --memory or ask for fewer eigenvalues",
        )
    goal = min(op.n, wanted.count)
    budget = state.matvecs + max_matvecs
    status: Status | None = None
    spectrum: Spectrum | None = None
    converged, due = 0, 0
    while status is None:
        m = state.processed
        if m == op.n or (m >= goal and state.matvecs >= due):
            spectrum = ritz(state, wanted, tol)
            converged = int(spectrum.converged_M[spectrum.wanted].sum())
            state.orthogonality.limit = LOSS * spectrum.limit
            due = state.matvecs + _pause(m, goal - converged)
            if m == op.n or (converged >= goal and _no_copies_left(op, state, spectrum, recheck)):
                status = "converged"
                break
            _follow_the_worst(state, spectrum)
        progress(Progress(state.matvecs, min(converged, goal), goal))
        status = stop() or ("max_matvecs" if state.matvecs >= budget else None)
        if status is None:
            if m == state.basis.capacity - 1 and state.basis.capacity < op.n:
                _make_room(state, wanted, tol)
            step(op, state, (yield state.basis[state.processed]))
    if state.processed == 0:
        raise NoAnswerError(
            "stopped before the first product was done",
            "allow more time (--timeout) or products (--max-matvecs)",
        )
    if status != "converged" or spectrum is None:
        spectrum = ritz(state, wanted, tol)
    return _result(op, state, spectrum, status, probability)


def _pause(m: int, missing: int) -> int:
    """Products until eigenpairs are looked at again: few converge in a step, and it is cubic in the basis size."""
    return max(1 + m // 64, missing // 2)


def _make_room(state: LanczosState, wanted: Wanted, tol: float) -> None:
    """Restart with the wanted Ritz vectors and their neighbours."""
    spectrum = ritz(state, wanted, tol)
    keep = neighbours(spectrum, wanted, state.processed, room=state.basis.capacity - 3)
    restart(state, spectrum.theta_M, spectrum.s_MM, keep)


def _no_copies_left(op: Space, state: LanczosState, spectrum: Spectrum, recheck: int) -> bool:
    """Whether the look for missed copies is over; starts it where it is due."""
    if recheck == 0:
        return True
    values = spectrum.wanted_values
    if state.rechecked is not None and len(values) == len(state.before_recheck):
        if state.rechecked < recheck:
            return False
        error = 2 * float(spectrum.bounds_M[spectrum.wanted].max())
        error += 100 * torch.finfo(op.dtype).eps * float(np.abs(spectrum.theta_M).max())
        moved = sum(
            abs(new - old) > error for new, old in zip(values, state.before_recheck, strict=True)
        )
        state.copies_found += moved
        if not moved:
            return True
    state.rechecked = 0
    state.before_recheck = values
    if state.live:
        suspend(state)
        append_fresh(op, state)
    return False


def _follow_the_worst(state: LanczosState, spectrum: Spectrum) -> None:
    """Of all residual directions, follow the one that most of the open pairs' residual lies in."""
    open_ = [i for i in spectrum.wanted if not spectrum.converged_M[i]]
    if not open_ or not state.suspended:
        return
    s_MK = spectrum.s_MM[:, open_]
    shares = [float(tail.share(s_MK).max()) for tail in state.suspended]
    worst = int(np.argmax(shares))
    if state.live and float(state.live.share(s_MK).max()) >= shares[worst]:
        return
    follow(state, worst)


def _result(
    op: Space,
    state: LanczosState,
    spectrum: Spectrum,
    status: Status,
    probability: float,
) -> LanczosResult:
    pairs = [*spectrum.top, *spectrum.bottom]
    # Pairs whose look for copies was cut short have converged all the same.
    if status != "converged" and state.rechecked is not None and spectrum.converged_M[pairs].all():
        status = "converged"
    lower, upper = reach(state.alphas, state.betas, op.n, probability, state.share)
    vectors_KN = state.basis.combine(spectrum.s_MM[:, pairs])
    vectors_KN /= ranks_of(op).norms(vectors_KN)[:, None]
    # What a waiting direction has in the basis is accounted for in T, as far as its product is known.
    waiting = [t for t in (outside(state, t) for t in state.suspended) if t is not None]
    tails = [*waiting, *([state.live] if state.live else [])]
    return LanczosResult(
        values_K=spectrum.theta_M[pairs],
        bounds_K=spectrum.bounds_M[pairs] + math.sqrt(op.n * torch.finfo(op.dtype).tiny),
        converged_K=tuple(bool(c) for c in spectrum.converged_M[pairs]),
        top=len(spectrum.top),
        vectors_KN=vectors_KN,
        status=status,
        matvecs=state.matvecs,
        restarts=state.restarts,
        norm=float(np.abs(spectrum.theta_M).max()),
        # Ritz values of later cycles lie beyond the first cycle's bound only if that failed.
        lower=min(lower, float(spectrum.theta_M[0])),
        upper=max(upper, float(spectrum.theta_M[-1])),
        ritz_values_M=spectrum.theta_M,
        copies_found=state.copies_found,
        rechecked=state.rechecked or 0,
        tails=tuple(
            (
                state.basis[state.processed].clone() if t.direction_N is None else t.direction_N,
                t.component(spectrum.s_MM[:, pairs]),
            )
            for t in tails
        ),
    )
