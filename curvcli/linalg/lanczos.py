"""Thick-restart Lanczos with partial reorthogonalisation, for both ends of a spectrum.

Wu & Simon, SIAM J. Matrix Anal. Appl. 22 (2000), with four additions: breakdowns are tested relative
to the norm of the projected matrix and continued with a fresh direction; after convergence a fresh random
direction looks for copies of eigenvalues, which a single Krylov space cannot contain; the first,
unrestarted cycle yields a probabilistic bound on what was not seen (`linalg.reach`); and its vectors are
orthogonalised against the basis only where they have to be (`linalg.orthogonality`).

Shapes: ``N`` length of a vector, ``M`` size of the basis, ``K`` pairs asked for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curvcli.errors import CurvError, NoAnswerError, NonFiniteError
from curvcli.linalg.basis import Basis
from curvcli.linalg.lockstep import Request, answered
from curvcli.linalg.operator import (
    Float64Array,
    Space,
    SymmetricOperator,
    eigh,
    random_unit_vector,
)
from curvcli.linalg.orthogonality import Orthogonality
from curvcli.linalg.reach import reach
from curvcli.linalg.vectors import euclidean_norm, euclidean_norms
from curvcli.linalg.warm import mixed

Status = Literal["converged", "max_matvecs", "timeout", "interrupted"]
Order = Literal["value", "magnitude"]

# A Ritz value below this share of the norm is judged against the norm, not against itself.
SMALL = 0.01
# Relative error of a product in units of eps ‖A‖ that a residual is widened by.
ROUNDING = 16
# Entries of a basis that are read in less time than it takes to find out whether they have to be.
WORTH_SKIPPING = 1 << 20
# Share of the residual asked for that a loss of orthogonality may add.
LOSS = 0.05


@dataclass(frozen=True)
class Wanted:
    """Which eigenvalues: the ``top`` largest and ``bottom`` smallest by value, or by magnitude."""

    top: int
    bottom: int = 0
    order: Order = "value"

    @property
    def count(self) -> int:
        """How many pairs that are at most."""
        return self.top + self.bottom

    def select(self, theta_M: Float64Array) -> tuple[list[int], list[int]]:
        """Indices into the ascending values ``theta_M``: (top, best first), (bottom, lowest first).

        With ``order="magnitude"`` the first list holds the largest |θ|.
        """
        m = len(theta_M)
        if self.order == "magnitude":
            top = np.argsort(-np.abs(theta_M), kind="stable")[: self.top].tolist()
        else:
            top = list(range(m - 1, m - 1 - min(self.top, m), -1))
        return top, list(range(min(self.bottom, m)))


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
    """ρ = β_m |s_mi| of each, plus what lost orthogonality may add: an eigenvalue lies within ρ of the Ritz value."""
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


@dataclass(frozen=True)
class Tail:
    """A residual direction outside the basis: A Q s leaves it with norm ``beta`` |c·s|."""

    beta: float
    c_M: Float64Array
    direction_N: Tensor | None = None
    """The unit vector itself; None where it is the pending vector of the basis."""

    def transformed(self, s_MK: Float64Array) -> "Tail":
        """The same direction after the basis Q became Q S."""
        return Tail(self.beta, s_MK[: len(self.c_M)].T @ self.c_M, self.direction_N)

    def component(self, s_MK: Float64Array) -> Float64Array:
        """What each column of ``s_MK`` leaves in this direction, shape (K,)."""
        # Basis vectors that came after the tail do not touch it.
        sums_K: Float64Array = (self.c_M[:, None] * s_MK[: len(self.c_M)]).sum(axis=0)
        return self.beta * sums_K

    def share(self, s_MK: Float64Array) -> Float64Array:
        """Norm of the residual that each column of ``s_MK`` leaves in this direction, shape (K,)."""
        return np.abs(self.component(s_MK))


@dataclass
class LanczosState:
    """Everything that a run needs to go on: A Q = Q T + the tails + what is left out."""

    basis: Basis
    generator: torch.Generator
    t_MM: Float64Array
    """Projected matrix; its leading ``processed`` rows and columns are in use."""
    processed: int = 0
    """Basis vectors whose product is known. The basis holds one more, the pending one."""
    live: Tail | None = None
    """The residual whose direction is the pending vector; None after a breakdown."""
    suspended: list[Tail] = field(default_factory=list)
    """Residuals whose direction waits while another one is followed."""
    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)
    first_cycle: bool = True
    """Whether α and β still continue the recurrence of the random start vector."""
    matvecs: int = 0
    restarts: int = 0
    copies_found: int = 0
    rechecked: int | None = None
    """Products spent on the present look for copies; None before the first convergence."""
    before_recheck: list[float] = field(default_factory=list)
    """Wanted values when the present look for copies began."""
    share: float = 1.0
    """Share of the start vector that is random, see `linalg.warm`."""
    orthogonality: Orthogonality = field(init=False)
    """Whether the next vector has to be orthogonalised."""

    left_out_M: Float64Array = field(init=False)
    """Norm of what orthogonalisation removed from each product without its being in T, shape (capacity,)."""

    def __post_init__(self) -> None:
        self.left_out_M = np.zeros(self.basis.capacity)
        self.orthogonality = Orthogonality(torch.finfo(self.basis.dtype).eps)

    @property
    def projected(self) -> Float64Array:
        """The used part of T, a view of shape (processed, processed)."""
        used_MM: Float64Array = self.t_MM[: self.processed, : self.processed]
        return used_MM


@dataclass(frozen=True)
class _Spectrum:
    """Ritz values of the present basis with their bounds, and which are wanted."""

    theta_M: Float64Array
    s_MM: Float64Array
    bounds_M: Float64Array
    limit_M: Float64Array
    """Largest bound with which each counts as converged, but for rounding."""
    converged_M: npt.NDArray[np.bool_]
    top: list[int]
    bottom: list[int]

    @property
    def wanted(self) -> list[int]:
        return sorted({*self.top, *self.bottom})

    @property
    def wanted_values(self) -> list[float]:
        return [float(self.theta_M[i]) for i in self.wanted]

    @property
    def limit(self) -> float:
        """The strictest bound asked for."""
        return float(self.limit_M[self.wanted].min())


def start(op: Space, capacity: int, seed: int, guess_N: Tensor | None = None) -> LanczosState:
    """A new run: room for ``capacity`` vectors, and a random start vector.

    Args:
        op: the operator.
        capacity: vectors kept at most.
        seed: of the random vector; for a guess from an earlier run, another one than that run's.
        guess_N: a vector rich in what is looked for, mixed into the start vector.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = Basis(op.n, capacity, op.dtype, op.device)
    first = mixed(random_unit_vector(op, generator), guess_N)
    basis.append(first.vector_N)
    t_MM = np.zeros((basis.capacity, basis.capacity))
    return LanczosState(basis, generator, t_MM, share=first.share)


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
    spectrum: _Spectrum | None = None
    converged, due = 0, 0
    while status is None:
        m = state.processed
        if m == op.n or (m >= goal and state.matvecs >= due):
            spectrum = _ritz(state, wanted, tol)
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
                _restart(state, _ritz(state, wanted, tol), wanted)
            _step(op, state, (yield state.basis[state.processed]))
    if state.processed == 0:
        raise NoAnswerError(
            "stopped before the first product was done", "allow more time or products"
        )
    if status != "converged" or spectrum is None:
        spectrum = _ritz(state, wanted, tol)
    return _result(op, state, spectrum, status, probability)


def _pause(m: int, missing: int) -> int:
    """Products until eigenpairs are looked at again: few converge in a step, and it is cubic in the basis size."""
    return max(1 + m // 64, missing // 2)


def _step(op: Space, state: LanczosState, w_N: Tensor) -> None:
    """The product ``w_N`` of the pending vector, orthogonalised and normalised, becomes the pending vector."""
    j = state.processed
    state.matvecs += 1
    if state.rechecked is not None:
        state.rechecked += 1
    column_M, beta = _orthogonalise(op, state, w_N)
    if not math.isfinite(beta):
        raise NonFiniteError(
            f"product {state.matvecs} contains NaN or Inf although the loss is finite",
            "try --dtype float64; or a second derivative may not exist here (0/0, sqrt at 0)",
        )
    t_MM = state.t_MM
    t_MM[: j + 1, j] = column_M
    t_MM[j, : j + 1] = column_M
    state.processed = m = j + 1
    scale = float(np.abs(state.projected).max())
    broke_down = beta <= 10 * torch.finfo(op.dtype).eps * scale
    if state.first_cycle:
        state.alphas.append(float(column_M[j]))
        state.betas.append(0.0 if broke_down or m == op.n else beta)
    state.live = None
    if m == op.n:
        state.suspended = []  # the basis spans everything: no direction is left outside it
    elif broke_down:
        _append_fresh(op, state)
    else:
        state.live = Tail(beta, np.eye(1, m, j)[0])
        state.basis.append(w_N, beta)
        if m < state.basis.capacity:
            t_MM[j, m] = t_MM[m, j] = beta


def _orthogonalise(op: Space, state: LanczosState, w_N: Tensor) -> tuple[Float64Array, float]:
    """Remove from the pending vector's product ``w_N`` what lies in the basis: (its column of T, norm of the rest)."""
    j = state.processed
    basis, t_MM, orthogonality = state.basis, state.t_MM, state.orthogonality
    q_N = basis[j]
    # The two local terms first: what cancels after them is a loss of orthogonality, which is what
    # the DGKS criterion is to see.
    alpha = float(torch.dot(q_N, w_N))
    local = float(t_MM[j - 1, j]) if j else 0.0
    if local:
        latest_2 = torch.tensor([local, alpha], dtype=w_N.dtype, device=w_N.device)
        w_N.addmv_(basis.rows[j - 1 :].T, latest_2, alpha=-1)
    else:
        w_N.add_(q_N, alpha=-alpha)
    norm = float(euclidean_norm(w_N))
    worth_it = state.first_cycle and j + 2 < basis.capacity and j * op.n >= WORTH_SKIPPING
    if worth_it and orthogonality.suffices(t_MM[: j + 1, : j + 1], alpha, norm):
        orthogonality.kept(norm)
        column_M = np.zeros(j + 1)
    else:
        h_M, norm = basis.project_out(w_N, norm, orthogonality.lost)
        column_M = h_M.double().cpu().numpy()
        if worth_it:
            orthogonality.removed(column_M)
        if orthogonality.partial and state.first_cycle:
            # In T they would count for the vectors before as well, whose products do not contain them.
            state.left_out_M[j] = float(np.linalg.norm(column_M))
            column_M = np.zeros(j + 1)
    column_M[j] += alpha
    if j:
        column_M[j - 1] += local
    return column_M, norm


def _append_fresh(op: Space, state: LanczosState) -> None:
    """Make a random vector orthogonal to the processed ones the pending vector."""
    state.first_cycle = False
    state.basis.size = state.processed
    if state.processed < state.basis.capacity:
        state.t_MM[state.processed, :] = state.t_MM[:, state.processed] = 0.0
    fresh_N = random_unit_vector(op, state.generator)
    _, norm = state.basis.project_out(fresh_N, lost=state.orthogonality.lost)
    state.basis.append(fresh_N, norm)


def _ritz(state: LanczosState, wanted: Wanted, tol: float) -> _Spectrum:
    """Ritz pairs of the present basis and which have converged."""
    theta_M, s_MM = eigh(state.projected)
    bounds_M = np.zeros_like(theta_M)
    for tail in (*state.suspended, *([state.live] if state.live else [])):
        bounds_M = bounds_M + tail.share(s_MM)
    bounds_M = bounds_M + state.left_out_M[: len(theta_M)] @ np.abs(s_MM)
    norm = float(np.abs(theta_M).max())
    limit_M = tol * np.maximum(np.abs(theta_M), SMALL * norm)
    # Room for the rounding that the true residual will contain, where the tolerance leaves any.
    rounding = ROUNDING * torch.finfo(state.basis.dtype).eps * norm
    converged_M = bounds_M <= np.maximum(0.95 * limit_M - rounding, 0.25 * limit_M)
    return _Spectrum(theta_M, s_MM, bounds_M, limit_M, converged_M, *wanted.select(theta_M))


def _restart(state: LanczosState, spectrum: _Spectrum, wanted: Wanted) -> None:
    """Keep the wanted Ritz vectors and their neighbours, about half of the free room."""
    m = state.processed
    room = state.basis.capacity - 3
    extra = max(0, min(room - wanted.count, (m - wanted.count) // 2))
    extra_bottom = extra * wanted.bottom // max(1, wanted.count)
    wider = Wanted(wanted.top + extra - extra_bottom, wanted.bottom + extra_bottom, wanted.order)
    top, bottom = wider.select(spectrum.theta_M)
    keep = sorted({*top, *bottom})
    s_MK = spectrum.s_MM[:, keep]
    # What a waiting direction has in the old basis is accounted for in T; only the rest stays a tail.
    state.suspended = [t for t in (_outside(state, t) for t in state.suspended) if t is not None]
    state.basis.restart(s_MK, keep_last=True)
    state.t_MM[:] = 0.0
    left_out_K = state.left_out_M[:m] @ np.abs(s_MK)
    state.processed = k = len(keep)
    state.left_out_M[:k], state.left_out_M[k:] = left_out_K, 0.0
    state.t_MM[range(k), range(k)] = spectrum.theta_M[keep]
    state.live = state.live.transformed(s_MK) if state.live else None
    state.suspended = [tail.transformed(s_MK) for tail in state.suspended]
    state.first_cycle = False
    state.restarts += 1


def _no_copies_left(op: Space, state: LanczosState, spectrum: _Spectrum, recheck: int) -> bool:
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
        _suspend(state)
        _append_fresh(op, state)
    return False


def _suspend(state: LanczosState) -> None:
    """Let the pending vector wait, with its residual."""
    if state.live:
        pending_N = state.basis[state.processed].clone()
        state.suspended.append(Tail(state.live.beta, state.live.c_M, pending_N))
        state.live = None
        state.basis.size = state.processed


def _outside(state: LanczosState, tail: Tail) -> Tail | None:
    """The part of a waiting residual that the processed vectors do not span; None if nothing is left."""
    assert tail.direction_N is not None
    pending = state.basis.size
    state.basis.size = state.processed
    rest_N = tail.direction_N.clone()
    _, share = state.basis.project_out(rest_N, lost=state.orthogonality.lost)
    state.basis.size = pending
    if share <= 100 * torch.finfo(state.basis.dtype).eps:
        return None
    return Tail(tail.beta * share, tail.c_M, rest_N.div_(share))


def _follow_the_worst(state: LanczosState, spectrum: _Spectrum) -> None:
    """Of all residual directions, follow the one that most of the open pairs' residual lies in."""
    open_ = [i for i in spectrum.wanted if not spectrum.converged_M[i]]
    if not open_ or not state.suspended:
        return
    s_MK = spectrum.s_MM[:, open_]
    shares = [float(tail.share(s_MK).max()) for tail in state.suspended]
    worst = int(np.argmax(shares))
    if state.live and float(state.live.share(s_MK).max()) >= shares[worst]:
        return
    chosen = _outside(state, state.suspended.pop(worst))
    if chosen is None or chosen.direction_N is None:
        return
    _suspend(state)
    state.basis.size = m = state.processed
    if m < state.basis.capacity:
        state.t_MM[m, :] = state.t_MM[:, m] = 0.0
    state.basis.append(chosen.direction_N)
    state.live = Tail(chosen.beta, chosen.c_M)


def _result(
    op: Space,
    state: LanczosState,
    spectrum: _Spectrum,
    status: Status,
    probability: float,
) -> LanczosResult:
    pairs = [*spectrum.top, *spectrum.bottom]
    # Pairs whose look for copies was cut short have converged all the same.
    if status != "converged" and state.rechecked is not None and spectrum.converged_M[pairs].all():
        status = "converged"
    lower, upper = reach(state.alphas, state.betas, op.n, probability, state.share)
    vectors_KN = state.basis.combine(spectrum.s_MM[:, pairs])
    vectors_KN /= euclidean_norms(vectors_KN)[:, None]
    # What a waiting direction has in the basis is accounted for in T, as far as its product is known.
    waiting = [t for t in (_outside(state, t) for t in state.suspended) if t is not None]
    tails = [*waiting, *([state.live] if state.live else [])]
    return LanczosResult(
        values_K=spectrum.theta_M[pairs],
        bounds_K=spectrum.bounds_M[pairs],
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
