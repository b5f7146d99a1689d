"""Bidiagonalisation of many matrices at once, with full reorthogonalisation on both sides.

Golub & Kahan, SIAM J. Numer. Anal. 2 (1965). After k steps A V = U B and Aᵀ U = V Bᵀ + β v eₖᵀ with B upper
bidiagonal, so that a singular triplet (θ, s, t) of B leaves the residual Aᵀ(Us) − θ Vt = β sₖ v. One product
with each of A and Aᵀ advances every matrix of the batch by one step. A breakdown (an invariant subspace) in
one of them is continued with a fresh direction there.

Shapes: ``S`` matrices, each ``(M, N)`` with n ≤ m; ``J`` steps; ``K`` triplets; ``L`` either length.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from curvcli.linalg.basis import DGKS_ETA
from curvcli.linalg.operator import ROUNDING, SMALL

# Steps between two looks at the singular values of B.
_CHECK_EVERY = 2


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


class Pairs(NamedTuple):
    """Some singular triplets, largest first."""

    values_SK: Tensor
    bounds_SK: Tensor
    left_SKM: Tensor
    right_SKN: Tensor

    def first(self, k: int) -> "Pairs":
        """The ``k`` largest."""
        return Pairs(*(t[:, :k] for t in self))

    def joined(self, more: "Pairs") -> "Pairs":
        """Both, largest first; ``more`` are triplets of the matrix without those of ``self``.

        Aᵀ applied to one of ``more`` also leaves what the residuals of ``self`` let through.
        """
        leak_S1 = torch.linalg.vector_norm(self.bounds_SK, dim=1, keepdim=True)
        more = more._replace(bounds_SK=more.bounds_SK + leak_S1)
        both = [torch.cat(pair, 1) for pair in zip(self, more, strict=True)]
        order_SK = both[0].argsort(dim=1, descending=True, stable=True)
        values_SK, bounds_SK = (t.gather(1, order_SK) for t in both[:2])
        left_SKM, right_SKN = (
            t.gather(1, order_SK.to(t.device)[:, :, None].expand_as(t)) for t in both[2:]
        )
        return Pairs(values_SK, bounds_SK, left_SKM, right_SKN)


class _Rest(NamedTuple):
    """What is left of vectors beside a basis."""

    unit_SL: Tensor
    """Unit vectors, but where ``broken_S``,"""
    length_S: Tensor
    """the lengths they had,"""
    broken_S: Tensor
    """and where that is nothing but rounding."""


class Bidiagonalisation:
    """One bidiagonalisation of every matrix, n ≤ m, in the complement of ``locked`` triplets."""

    def __init__(
        self,
        op: BatchedOperator,
        max_steps: int,
        seeds: Sequence[int],
        locked: Pairs | None = None,
    ) -> None:
        self.op = op
        self._locked = locked
        self._dimension = op.columns - (locked.values_SK.shape[1] if locked else 0)
        self.capacity = min(self._dimension, max_steps)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._wide = torch.float64 if op.dtype == torch.float64 else torch.float32
        self.steps = 0
        # Room grows with the steps, so that a run that ends early never holds a full basis.
        self._u_SJM = self._room(0, op.rows)
        self._v_SJN = self._room(0, op.columns)
        self._alpha: list[Tensor] = []
        self._beta: list[Tensor] = []
        self._norm_S = torch.zeros(op.count, dtype=self._wide, device=op.device)
        self._next_SN = self._fresh(self._v_SJN, locked.right_SKN if locked else None)

    @property
    def exhausted(self) -> bool:
        """Whether the whole space was spanned: B holds every singular value."""
        return self.steps == self._dimension

    @property
    def right(self) -> Tensor:
        """V, shape ``(S, J, n)``."""
        return self._v_SJN[:, : self.steps]

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
        steps: int = 0,
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
        return bool(steps) or self.exhausted

    def pairs(self, top: int) -> Pairs:
        """The ``top`` largest Ritz triplets."""
        values_SK, bounds_SK, p_SJK, q_SJK = self._small(top)
        p, q = (t.to(self.op.device, self.op.dtype).transpose(1, 2) for t in (p_SJK, q_SJK))
        return Pairs(values_SK, bounds_SK, p @ self.left, q @ self.right)

    def captured(self, with_rest: bool) -> Tensor:
        """‖A V‖_F² = ‖B‖_F², or with the rest ‖Aᵀ U‖_F² = ‖B‖_F² + β²; ``(S,)``, float64, CPU."""
        beta = self._beta if with_rest else self._beta[:-1]
        return torch.stack([*self._alpha, *beta]).cpu().double().square().sum(0)

    def _small(self, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """SVD of B: values, residual bounds β |s_k|, and the vectors' coefficients."""
        entries = (
            torch.stack([*self._alpha, *self._beta], 1).cpu().double()
        )  # one read of the device
        alpha_SJ, beta_SJ = entries.split(self.steps, 1)
        b_SJJ = torch.diag_embed(alpha_SJ)
        if self.steps > 1:
            b_SJJ = b_SJJ + torch.diag_embed(beta_SJ[:, :-1], 1)
        p_SJJ, values_SJ, qt_SJJ = torch.linalg.svd(b_SJJ)
        bounds_SJ = beta_SJ[:, -1:] * p_SJJ[:, -1].abs()
        k = min(top, self.steps)
        return values_SJ[:, :k], bounds_SJ[:, :k], p_SJJ[..., :k], qt_SJJ[:, :k].transpose(1, 2)

    def _step(self) -> None:
        op, j = self.op, self.steps
        if j == self._v_SJN.shape[1]:
            size = min(self.capacity, max(8, 2 * j))
            self._u_SJM = _grown(self._u_SJM, self._room(size, op.rows))
            self._v_SJN = _grown(self._v_SJN, self._room(size, op.columns))
        self._v_SJN[:, j] = self._next_SN
        self.steps = j + 1
        basis_SJM, basis_SJN = self._u_SJM[:, :j], self._v_SJN[:, : j + 1]
        left = self._rest_of(op.jvp(self._next_SN), basis_SJM)
        right = self._following(left.unit_SL, basis_SJN)
        # Both are asked together: the host waits for a device once a step.
        broken = torch.stack([left.broken_S.any(), right.broken_S.any()]).tolist()
        if broken[0]:
            left = self._mended(left, basis_SJM, "left_SKM")
            right = self._following(left.unit_SL, basis_SJN)
            broken[1] = bool(right.broken_S.any())
        if broken[1]:
            right = self._mended(right, basis_SJN, "right_SKN")
        self._u_SJM[:, j] = left.unit_SL
        self._next_SN = right.unit_SL
        self._alpha.append(left.length_S)
        self._beta.append(right.length_S)

    def _following(self, u_SM: Tensor, basis_SJN: Tensor) -> "_Rest":
        """What Aᵀ u adds to the basis; nothing, once that spans the whole space."""
        if self.exhausted:
            zero_S = torch.zeros_like(self._norm_S)
            return _Rest(self._next_SN, zero_S, zero_S.bool())
        return self._rest_of(self.op.vjp(u_SM), basis_SJN)

    def _rest_of(self, w_SL: Tensor, basis_SJL: Tensor) -> "_Rest":
        """The normalised rest beside the basis."""
        rest_SL, before_S, length_S = self._rest(w_SL, basis_SJL)
        cancelled_S = length_S < DGKS_ETA * before_S
        # A second pass takes less time on a device than the host's wait for the answer whether it is needed.
        if self.op.device.type != "cpu" or bool(cancelled_S.any()):
            again_SL, _, again_S = self._rest(rest_SL, basis_SJL)
            rest_SL = torch.where(cancelled_S[:, None], again_SL, rest_SL)
            length_S = torch.where(cancelled_S, again_S, length_S)
        broken_S = self._broken(length_S)
        self._norm_S = torch.maximum(self._norm_S, length_S)
        unit_SL = rest_SL / torch.where(broken_S, 1.0, length_S)[:, None].to(rest_SL.dtype)
        return _Rest(unit_SL, length_S, broken_S)

    def _mended(
        self, rest: "_Rest", basis_SJL: Tensor, side: Literal["left_SKM", "right_SKN"]
    ) -> "_Rest":
        """A fresh direction where nothing but rounding was left."""
        locked_SKL = getattr(self._locked, side) if self._locked else None
        fresh_SL = self._fresh(basis_SJL, locked_SKL)
        return _Rest(
            torch.where(rest.broken_S[:, None], fresh_SL, rest.unit_SL),
            torch.where(rest.broken_S, 0.0, rest.length_S),
            rest.broken_S,
        )

    def _broken(self, length_S: Tensor) -> Tensor:
        """Where nothing but rounding is left of a vector."""
        norm_S = torch.maximum(self._norm_S, length_S)
        return length_S <= ROUNDING * torch.finfo(self.op.dtype).eps * norm_S

    def _rest(self, w_SL: Tensor, basis_SJL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``w`` less its components along the basis, and both lengths."""
        before_S = torch.linalg.vector_norm(w_SL, dim=1, dtype=self._wide)
        if basis_SJL.shape[1] == 0:
            return w_SL, before_S, before_S
        rest_SL = without(basis_SJL, w_SL)
        return rest_SL, before_S, torch.linalg.vector_norm(rest_SL, dim=1, dtype=self._wide)

    def _fresh(self, basis_SJL: Tensor, locked_SKL: Tensor | None) -> Tensor:
        """Random unit vectors orthogonal to the basis and to what is locked."""
        op, length = self.op, basis_SJL.shape[2]
        z_SL = torch.stack(
            [torch.randn(length, generator=g, dtype=torch.float64) for g in self._generators]
        )
        rest_SL = z_SL.to(op.device, op.dtype)
        for _ in range(2):
            if locked_SKL is not None:
                rest_SL = without(locked_SKL, rest_SL)
            rest_SL, norm_S = self._orthogonal(rest_SL, basis_SJL)
            rest_SL = rest_SL / norm_S[:, None].to(op.dtype)
        return rest_SL

    def _orthogonal(self, w_SL: Tensor, basis_SJL: Tensor) -> tuple[Tensor, Tensor]:
        """Remove the components along the basis; a second pass where the first cancelled (DGKS)."""
        rest_SL, before_S, after_S = self._rest(w_SL, basis_SJL)
        if bool((after_S < DGKS_ETA * before_S).any()):
            rest_SL, _, after_S = self._rest(rest_SL, basis_SJL)
        return rest_SL, after_S

    def _room(self, size: int, length: int) -> Tensor:
        return torch.empty(self.op.count, size, length, dtype=self.op.dtype, device=self.op.device)


def steps_that_fit(free: float, rows: int, columns: int, itemsize: int) -> int:
    """Steps whose two bases fit in ``free`` bytes, growth by doubling included."""
    return max(0, int(free / (1.5 * itemsize * (rows + columns))))


def without(basis_SKL: Tensor, w_SL: Tensor) -> Tensor:
    """``w`` less its components along orthonormal vectors, one pass."""
    h_SK = torch.einsum("skl,sl->sk", basis_SKL, w_SL)
    return w_SL - torch.einsum("sk,skl->sl", h_SK, basis_SKL)


def _grown(old_SJL: Tensor, new_SJL: Tensor) -> Tensor:
    new_SJL[:, : old_SJL.shape[1]] = old_SJL
    return new_SJL
