"""Golub-Kahan-Lanczos bidiagonalisation of many matrices at once, with full reorthogonalisation.

Golub & Kahan, SIAM J. Numer. Anal. 2 (1965). After k steps A V = U B and Aᵀ U = V Bᵀ + β v eₖᵀ with B upper
bidiagonal, so that a singular triplet (θ, s, t) of B leaves the residual Aᵀ(Us) − θ Vt = β sₖ v. One product
with each of A and Aᵀ advances every matrix of the batch by one step. A breakdown (an invariant subspace) in
one of them is continued with a fresh direction there, and a look at the deflated matrix finds copies of
singular values, which a single Krylov space cannot contain.

Shapes: ``S`` matrices, each ``(M, N)``; ``J`` steps; ``K`` triplets.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from curvcli.linalg.basis import DGKS_ETA
from curvcli.linalg.lanczos import ROUNDING, SMALL

# Steps between two looks at the singular values of B.
_CHECK_EVERY = 2
# Rounds of looking for copies of singular values: each finds one more of every multiple value.
_ROUNDS = 16


class BatchedOperator(Protocol):
    """S independent linear maps ℝⁿ → ℝᵐ of one shape, known only by their products."""

    @property
    def count(self) -> int:
        """S, the number of matrices."""

    @property
    def rows(self) -> int:
        """m of each matrix."""

    @property
    def columns(self) -> int:
        """n of each matrix."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the vectors."""

    @property
    def device(self) -> torch.device:
        """Where the vectors live."""

    def jvp(self, v_SN: Tensor) -> Tensor:
        """A_i v_i for all i, shape ``(S, m)``."""

    def vjp(self, u_SM: Tensor) -> Tensor:
        """A_iᵀ u_i for all i, shape ``(S, n)``."""


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

    def __init__(self, op: BatchedOperator, left_SKM: Tensor, right_SKN: Tensor) -> None:
        self._op, self._left, self._right = op, left_SKM, right_SKN
        self.count, self.rows, self.columns = op.count, op.rows, op.columns
        self.dtype, self.device = op.dtype, op.device

    def jvp(self, v_SN: Tensor) -> Tensor:
        return _without(self._left, self._op.jvp(_without(self._right, v_SN)))

    def vjp(self, u_SM: Tensor) -> Tensor:
        return _without(self._right, self._op.vjp(_without(self._left, u_SM)))


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
    copies_found: int
    """Matrices in which only the look at the deflated matrix found a value."""
    norm_S: Tensor
    """θ₁, a lower bound on ‖A‖."""
    complete: bool
    """Whether the run reached its end within the budget (and was not stopped)."""
    basis_SJM: Tensor
    """Orthonormal left vectors of the first run, U."""
    captured_S: Tensor
    """‖Uᵀ A‖_F² = ‖B‖_F² + β²: what U holds of ‖A‖_F², exactly."""


def golub_kahan(
    op: BatchedOperator,
    top: int,
    *,
    tol: float = 1e-3,
    max_steps: int = 100,
    recheck: int = 6,
    seed: int = 0,
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
        seed: of the start vectors, drawn on the CPU, one stream for each matrix.
        stop: asked after each step; True ends the run with what is known.
        progress: told the number of steps so far.
    """
    if op.columns > op.rows:
        # Start on the shorter side: n steps exhaust it, and no start vector has a part in a null space.
        flipped = golub_kahan(
            Transposed(op), top, tol=tol, max_steps=max_steps, recheck=recheck, seed=seed,
            stop=stop, progress=progress,
        )  # fmt: skip
        return _flip(flipped)
    top = min(top, op.columns)
    run = _Run(op, min(op.columns, max_steps), seed)
    done = run.advance(top, tol, stop, progress, 0)
    values, bounds, left, right = run.triplets(top)
    steps, copies = run.steps, 0
    complete = done
    for attempt in range(1, _ROUNDS + 1):
        spent_all = run.steps == op.columns and attempt == 1
        if not (complete and recheck) or top >= op.columns or spent_all:
            break
        limit = min(op.columns - left.shape[1], max_steps - steps)
        if limit < 1:
            break
        other = _Run(_Deflated(op, left, right), limit, seed + attempt)
        offset = steps
        other.advance(0, tol, stop, lambda j, o=offset: progress(o + j), recheck)  # type: ignore[misc]
        highest_S = other.triplets(1)[0][:, 0]
        floor_S = values[:, min(top, values.shape[1]) - 1]
        missed_S = highest_S > floor_S * (1 + tol) + SMALL * tol * values[:, 0]
        # A copy of a value larger than the smallest wanted one, or wanted in its own right.
        if not bool(missed_S.any()):
            steps += other.steps
            break
        copies = max(copies, int(missed_S.sum()))
        complete = other.advance(top, tol, stop, lambda j, o=offset: progress(o + j), 0)  # type: ignore[misc]
        steps += other.steps
        more = other.triplets(top)
        values, bounds, left, right = _merge(
            (values, bounds, left, right), more, min(op.columns, values.shape[1] + top)
        )
    values, bounds, left, right = (t[:, :top] for t in (values, bounds, left, right))
    floor_SK = torch.maximum(values, SMALL * values[:, :1])
    return Triplets(
        values_SK=values,
        bounds_SK=bounds,
        converged_SK=bounds <= tol * floor_SK,
        left_SKM=left,
        right_SKN=right,
        steps=steps,
        copies_found=copies,
        norm_S=values[:, 0],
        complete=complete,
        basis_SJM=run.left,
        captured_S=run.captured(),
    )


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
        squares_S = (av_SM - theta_S1 * u_SM).double().square().sum(1)
        squares_S += (atu_SN - theta_S1 * v_SN).double().square().sum(1)
        values.append(theta_S1[:, 0].double().cpu())
        residuals.append((squares_S / 2).sqrt().cpu() + eps * found.norm_S)
    return torch.stack(values, 1), torch.stack(residuals, 1)


class _Run:
    """One bidiagonalisation of every matrix; n ≤ m."""

    def __init__(self, op: BatchedOperator, capacity: int, seed: int) -> None:
        self.op, self.capacity = op, capacity
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0
        # Room grows with the steps, so that a run that ends early never holds a full basis.
        self._u_SJM = self._room(0, op.rows)
        self._v_SJN = self._room(0, op.columns)
        self._alpha: list[Tensor] = []
        self._beta: list[Tensor] = []
        self._norm_S = torch.zeros(op.count, dtype=torch.float64, device=op.device)
        self._next_SN = self._fresh(op.columns, self._v_SJN[:, :0])

    @property
    def left(self) -> Tensor:
        """U, shape ``(S, J, m)``."""
        return self._u_SJM[:, : self.steps]

    def advance(
        self,
        top: int,
        tol: float,
        stop: Callable[[], bool],
        progress: Callable[[int], None],
        steps: int,
    ) -> bool:
        """Step until ``top`` triplets have converged everywhere, or so many ``steps`` were made.

        Returns:
            Whether that was reached within the capacity.
        """
        goal = min(self.capacity, steps) if steps else self.capacity
        while self.steps < goal:
            self._step()
            progress(self.steps)
            if not steps and self.steps >= top and self.steps % _CHECK_EVERY == 0:
                values_SK, bounds_SK, *_ = self._small(top)
                floor_SK = torch.maximum(values_SK, SMALL * values_SK[:, :1])
                if bool((bounds_SK <= tol * floor_SK).all()):
                    return True
            if stop():
                return False
        return bool(steps) or self.steps == self.op.columns

    def triplets(self, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ritz values, bounds, left and right vectors of the ``top`` largest."""
        values_SK, bounds_SK, p_SJK, q_SJK = self._small(top)
        p, q = (t.to(self.op.device, self.op.dtype).transpose(1, 2) for t in (p_SJK, q_SJK))
        return values_SK, bounds_SK, p @ self.left, q @ self._v_SJN[:, : self.steps]

    def captured(self) -> Tensor:
        """‖Uᵀ A‖_F², shape ``(S,)``, float64 on the CPU."""
        total_S = torch.stack(self._alpha).square().sum(0) + torch.stack(self._beta).square().sum(0)
        return total_S.cpu()

    def _small(self, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """SVD of B: values, residual bounds β |s_k|, and the vectors' coefficients."""
        b_SJJ = torch.diag_embed(torch.stack(self._alpha, 1))
        if self.steps > 1:
            b_SJJ = b_SJJ + torch.diag_embed(torch.stack(self._beta[:-1], 1), 1)
        p_SJJ, values_SJ, qt_SJJ = torch.linalg.svd(b_SJJ.cpu())
        bounds_SJ = self._beta[-1].cpu()[:, None] * p_SJJ[:, -1].abs()
        k = min(top, self.steps)
        return values_SJ[:, :k], bounds_SJ[:, :k], p_SJJ[..., :k], qt_SJJ[:, :k].transpose(1, 2)

    def _step(self) -> None:
        op, j = self.op, self.steps
        if j == self._v_SJN.shape[1]:
            size = min(self.capacity, max(8, 2 * j))
            self._u_SJM = _grown(self._u_SJM, self._room(size, op.rows))
            self._v_SJN = _grown(self._v_SJN, self._room(size, op.columns))
        self._v_SJN[:, j] = self._next_SN
        p_SM, alpha_S = _orthogonalise(op.jvp(self._next_SN), self._u_SJM[:, :j])
        self._norm_S = torch.maximum(self._norm_S, alpha_S)
        alpha_S, u_SM = self._continue(p_SM, alpha_S, self._u_SJM[:, :j])
        self._u_SJM[:, j] = u_SM
        self.steps = j + 1
        r_SN, beta_S = _orthogonalise(op.vjp(u_SM), self._v_SJN[:, : j + 1])
        self._norm_S = torch.maximum(self._norm_S, beta_S)
        if self.steps < op.columns:
            beta_S, self._next_SN = self._continue(r_SN, beta_S, self._v_SJN[:, : j + 1])
        else:
            beta_S = torch.zeros_like(beta_S)
        self._alpha.append(alpha_S)
        self._beta.append(beta_S)

    def _continue(
        self, rest_SL: Tensor, length_S: Tensor, basis_SJL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The normalised rest, or a fresh direction where nothing but rounding is left of it."""
        floor_S = ROUNDING * torch.finfo(self.op.dtype).eps * self._norm_S
        broken_S = length_S <= floor_S
        unit_SL = rest_SL / torch.where(broken_S, 1.0, length_S)[:, None].to(rest_SL.dtype)
        if bool(broken_S.any()):
            fresh_SL = self._fresh(rest_SL.shape[1], basis_SJL)
            unit_SL = torch.where(broken_S[:, None], fresh_SL, unit_SL)
            length_S = torch.where(broken_S, 0.0, length_S)
        return length_S, unit_SL

    def _fresh(self, length: int, basis_SJL: Tensor) -> Tensor:
        op = self.op
        z_SL = torch.randn(op.count, length, generator=self.generator, dtype=torch.float64)
        rest_SL = z_SL.to(op.device, op.dtype)
        for _ in range(2):
            rest_SL, norm_S = _orthogonalise(rest_SL, basis_SJL)
            rest_SL = rest_SL / norm_S[:, None].to(op.dtype)
        return rest_SL

    def _room(self, size: int, length: int) -> Tensor:
        return torch.empty(self.op.count, size, length, dtype=self.op.dtype, device=self.op.device)


def steps_that_fit(free: float, rows: int, columns: int, itemsize: int) -> int:
    """Steps whose two bases fit in ``free`` bytes, growth by doubling included."""
    return max(0, int(free / (1.5 * itemsize * (rows + columns))))


def _without(basis_SKL: Tensor, w_SL: Tensor) -> Tensor:
    h_SK = torch.einsum("skl,sl->sk", basis_SKL, w_SL)
    return w_SL - torch.einsum("sk,skl->sl", h_SK, basis_SKL)


def _orthogonalise(w_SL: Tensor, basis_SJL: Tensor) -> tuple[Tensor, Tensor]:
    """Remove the components along the basis; a second pass where the first cancelled (DGKS)."""
    before_S = torch.linalg.vector_norm(w_SL, dim=1, dtype=torch.float64)
    if basis_SJL.shape[1] == 0:
        return w_SL, before_S
    rest_SL = _without(basis_SJL, w_SL)
    after_S = torch.linalg.vector_norm(rest_SL, dim=1, dtype=torch.float64)
    if bool((after_S < DGKS_ETA * before_S).any()):
        rest_SL = _without(basis_SJL, rest_SL)
        after_S = torch.linalg.vector_norm(rest_SL, dim=1, dtype=torch.float64)
    return rest_SL, after_S


def _grown(old_SJL: Tensor, new_SJL: Tensor) -> Tensor:
    new_SJL[:, : old_SJL.shape[1]] = old_SJL
    return new_SJL


def _merge(
    known: tuple[Tensor, Tensor, Tensor, Tensor],
    more: tuple[Tensor, Tensor, Tensor, Tensor],
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    joined = [torch.cat(pair, 1) for pair in zip(known, more, strict=True)]
    order_SK = joined[0].argsort(dim=1, descending=True, stable=True)[:, :keep]
    values_SK, bounds_SK = (t.gather(1, order_SK) for t in joined[:2])
    vectors = []
    for t in joined[2:]:
        index = order_SK.to(t.device)[:, :, None].expand(-1, -1, t.shape[2])
        vectors.append(t.gather(1, index))
    return values_SK, bounds_SK, vectors[0], vectors[1]


def _flip(t: Triplets) -> Triplets:
    """The triplets of Aᵀ as those of A."""
    raise NotImplementedError(math.nan)
