"""The factorisation that Lanczos extends and restarts: A Q = Q T + residual directions outside the basis.

One direction, the live one, is the next vector to be multiplied; others wait (Wu & Simon, SIAM J. Matrix Anal. Appl.
22, 2000, have the live one only). Vectors are orthogonalised against the basis only where they have to be
(`orthogonality`). Such a step removes components from the new vector that T does not record. They are kept in
``left_out_MM``, and the error bounds add them.

Shapes: ``N`` length of a vector, ``M`` size of the basis, ``K`` vectors kept.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from curvcli.errors import NonFiniteError
from curvcli.linalg.basis import Basis
from curvcli.linalg.lanczos.orthogonality import Orthogonality
from curvcli.linalg.lanczos.warm import mixed
from curvcli.linalg.operator import (
    Float64Array,
    Space,
    offload_of,
    product,
    random_unit_vector,
    ranks_of,
)

# Entries of a basis that are read in less time than it takes to find out whether they have to be.
WORTH_SKIPPING = 1 << 20


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

    left_out_MM: Float64Array = field(init=False)
    """What the product of each vector has in the basis beside T, one column a vector, as coordinates in the basis.
    After a restart what came before it are coordinates in some orthonormal basis: bounds need only norms of
    combinations of the columns."""

    def __post_init__(self) -> None:
        self.left_out_MM = np.zeros_like(self.t_MM)
        self.orthogonality = Orthogonality(torch.finfo(self.basis.dtype).eps)

    @property
    def projected(self) -> Float64Array:
        """The used part of T, a view of shape (processed, processed)."""
        used_MM: Float64Array = self.t_MM[: self.processed, : self.processed]
        return used_MM


def start(op: Space, capacity: int, seed: int, guess_N: Tensor | None = None) -> LanczosState:
    """A new run: room for ``capacity`` vectors, and a random start vector.

    Args:
        op: the operator.
        capacity: vectors kept at most.
        seed: of the random vector; for a guess from an earlier run, another one than that run's.
        guess_N: a vector rich in what is looked for, mixed into the start vector.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = Basis(op.n, capacity, op.dtype, op.device, ranks_of(op), offload_of(op))
    first = mixed(random_unit_vector(op, generator), guess_N, ranks=ranks_of(op))
    basis.append(first.vector_N)
    t_MM = np.zeros((basis.capacity, basis.capacity))
    return LanczosState(basis, generator, t_MM, share=first.share)


def step(op: Space, state: LanczosState, w_N: Tensor) -> None:
    """The product ``w_N`` of the pending vector, orthogonalised and normalised, becomes the pending vector."""
    j = state.processed
    state.matvecs += 1
    if state.rechecked is not None:
        state.rechecked += 1
    column_M, beta = _orthogonalise(op, state, w_N)
    if not math.isfinite(beta):
        raise NonFiniteError(
            f"product {state.matvecs} contains NaN or Inf although the loss is finite",
            "a second derivative may not exist here (0/0, sqrt at 0)"
            + ("" if op.dtype == torch.float64 else ", or overflow: try --dtype float64"),
        )
    if state.orthogonality.partial and not state.first_cycle:
        # T has these coefficients for the vectors before as well, whose products contain the tails' part only.
        state.left_out_MM[j, :j] = _expected(state) - column_M[:j]
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
        append_fresh(op, state)
    else:
        state.live = Tail(beta, np.eye(1, m, j)[0])
        state.basis.append(w_N, beta)
        if m < state.basis.capacity:
            t_MM[j, m] = t_MM[m, j] = beta


def _orthogonalise(op: Space, state: LanczosState, w_N: Tensor) -> tuple[Float64Array, float]:
    """Remove from the pending vector's product ``w_N`` what lies in the basis: (its column of T, norm of the rest)."""
    j = state.processed
    basis, t_MM, orthogonality = state.basis, state.t_MM, state.orthogonality
    local = float(t_MM[j - 1, j]) if j else 0.0
    worth_it = state.first_cycle and j + 2 < basis.capacity and j * op.n >= WORTH_SKIPPING
    if not worth_it:
        found = basis.continue_from(w_N, local, orthogonality.lost)
        if not (orthogonality.partial and state.first_cycle):
            return found.coefficients_M, found.norm
        column_M, norm, alpha = found
        column_M[j] -= alpha
        column_M[j - 1] -= local
    else:
        alpha, norm = torch.stack(basis.local_terms(w_N, local)).tolist()
        if orthogonality.suffices(t_MM[: j + 1, : j + 1], alpha, norm):
            orthogonality.kept(norm)
            column_M = np.zeros(j + 1)
        else:
            column_M, norm, _ = basis.project_out(w_N, norm, orthogonality.lost, whole=False)
            orthogonality.removed(column_M)
    if orthogonality.partial and state.first_cycle:
        # In T they would count for the vectors before as well, whose products do not contain them.
        state.left_out_MM[: j + 1, j] = column_M
        column_M = np.zeros(j + 1)
    column_M[j] += alpha
    if j:
        column_M[j - 1] += local
    return column_M, norm


def _expected(state: LanczosState) -> Float64Array:
    """What the products of the processed vectors contain of the pending vector, shape (processed,)."""
    expected_M, pending_N = np.zeros(state.processed), state.basis[state.processed]
    for tail in (*state.suspended, *([state.live] if state.live else [])):
        share = (
            1.0
            if tail.direction_N is None
            else float(state.basis.ranks.dot(tail.direction_N, pending_N))
        )
        expected_M[: len(tail.c_M)] += tail.beta * share * tail.c_M
    return expected_M


def append_fresh(op: Space, state: LanczosState) -> None:
    """Make a random vector orthogonal to the processed ones the pending vector."""
    state.first_cycle = False
    state.basis.size = state.processed
    if state.processed < state.basis.capacity:
        state.t_MM[state.processed, :] = state.t_MM[:, state.processed] = 0.0
    fresh_N = random_unit_vector(op, state.generator)
    norm = state.basis.project_out(fresh_N, lost=state.orthogonality.lost).norm
    state.basis.append(fresh_N, norm)


def suspend(state: LanczosState) -> None:
    """Let the pending vector wait, with its residual."""
    if state.live:
        beta, c_M = state.live.beta, state.live.c_M
        waiting_N = state.basis[state.processed].clone()
        state.live = None
        state.basis.size = m = state.processed
        if state.orthogonality.partial and state.first_cycle:
            inside_M, share, _ = state.basis.project_out(waiting_N, lost=state.orthogonality.lost)
            state.left_out_MM[:m, : len(c_M)] += beta * np.outer(inside_M, c_M)
            beta, waiting_N = beta * share, waiting_N.div_(share)
        state.suspended.append(Tail(beta, c_M, waiting_N))


def outside(state: LanczosState, tail: Tail) -> Tail | None:
    """The part of a waiting residual that the processed vectors do not span; None if nothing is left."""
    assert tail.direction_N is not None
    pending = state.basis.size
    state.basis.size = state.processed
    rest_N = tail.direction_N.clone()
    share = state.basis.project_out(rest_N, lost=state.orthogonality.lost).norm
    state.basis.size = pending
    if share <= 100 * torch.finfo(state.basis.dtype).eps:
        return None
    return Tail(tail.beta * share, tail.c_M, rest_N.div_(share))


def follow(state: LanczosState, index: int) -> None:
    """Make waiting direction ``index`` the live one, unless nothing of it is outside the basis."""
    chosen = outside(state, state.suspended.pop(index))
    if chosen is None or chosen.direction_N is None:
        return
    suspend(state)
    state.basis.size = m = state.processed
    if m < state.basis.capacity:
        state.t_MM[m, :] = state.t_MM[:, m] = 0.0
    state.basis.append(chosen.direction_N)
    state.live = Tail(chosen.beta, chosen.c_M)


def restart(
    state: LanczosState, theta_M: Float64Array, s_MM: Float64Array, keep: list[int]
) -> None:
    """Replace the basis by the Ritz vectors ``keep``, and the live direction after them.

    Args:
        state: changed in place.
        theta_M: Ritz values.
        s_MM: eigenvectors of T, as columns.
        keep: indices of those to keep.
    """
    m, s_MK = state.processed, s_MM[:, keep]
    # What a waiting direction has in the old basis is accounted for in T; only the rest stays a tail.
    state.suspended = [t for t in (outside(state, t) for t in state.suspended) if t is not None]
    state.basis.restart(s_MK, keep_last=True)
    state.t_MM[:] = 0.0
    left_out_MK = torch.from_numpy(product(state.left_out_MM[:m, :m], s_MK))
    state.processed = k = len(keep)
    state.left_out_MM[:] = 0.0
    state.left_out_MM[:k, :k] = torch.linalg.qr(left_out_MK, mode="r").R.numpy()
    state.t_MM[range(k), range(k)] = theta_M[keep]
    state.live = state.live.transformed(s_MK) if state.live else None
    state.suspended = [tail.transformed(s_MK) for tail in state.suspended]
    state.first_cycle = False
    state.restarts += 1
