"""The orthonormal basis of a Krylov space: the one place where many long vectors are kept.

Where several processes work together (`linalg.ranks`), each keeps its share of the entries of all basis vectors. Where
the device is too small for them, they are kept elsewhere (`linalg.storage`), and what is done with them is done there.

Shapes: ``N`` length of a vector, ``M`` vectors in the basis, ``K`` vectors asked for.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curvcli.linalg.operator import Float64Array
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.storage import Rows
from curvcli.linalg.vectors import euclidean_norm

# Daniel, Gragg, Kaufman & Stewart (Math. Comp. 30, 1976): one pass of Gram-Schmidt is enough when
# the vector keeps at least this share of its length.
DGKS_ETA = 2**-0.5
# Passes at most: each leaves the share `lost`, at worst √eps, of what it removes, so that three of them reach rounding.
_PASSES = 3
# Components, in units of eps times its length, that a vector may keep in a basis that is not quite orthonormal.
_ROUNDING = 10
# Columns rotated at a time in a restart, so that it needs no second basis: as many as stay in a core's cache, or
# so many that launching a kernel does not count.
_CHUNK, _CHUNK_LAUNCHED = 1 << 16, 1 << 20


class Removed(NamedTuple):
    """What orthogonalisation took out of a vector."""

    coefficients_M: Float64Array
    norm: float
    """Of what is left."""
    beside: float = 0.0
    """The number that was read along."""


class Basis:
    """Up to ``capacity`` orthonormal vectors of length ``n``, stored as the rows of one matrix.

    Row ``size - 1`` is the newest vector. All long-vector arithmetic of the Krylov methods is here.
    """

    def __init__(
        self,
        n: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        ranks: Ranks = ALONE,
        offload: str | None = None,
    ) -> None:
        self.n, self.ranks, self._device = n, ranks, device
        self.capacity = min(capacity, n)
        self.size = 0
        self._mine = ranks.kept(n)
        length = self._mine.stop - self._mine.start
        self._kept = Rows(self.capacity, length, dtype, device, offload)
        self._rows_MN = self._kept.data_MN
        self._newest: tuple[int, Tensor] | None = None

    @property
    def rows(self) -> Tensor:
        """The vectors as a view of shape ``(size, n)``, where they are kept; of several processes, its entries."""
        return self._rows_MN[: self.size]

    @property
    def _divided(self) -> bool:
        """Whether less is kept of a vector than this process holds of it elsewhere."""
        return self.ranks.size > 1 and not self.ranks.parted

    def whole(self) -> Tensor:
        """All entries of all vectors that this process holds, shape ``(size, n)``."""
        if not self._divided:
            return self._back(self.rows)
        return torch.stack([self._gathered(row_N) for row_N in self.rows])

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the vectors."""
        return self._rows_MN.dtype

    def __getitem__(self, index: int) -> Tensor:
        if not self._divided and self._rows_MN.device == self._device:
            return self.rows[index]
        # The newest vector is multiplied with, and looked at, more than once.
        if self._newest is None or self._newest[0] != index:
            row_N = self.rows[index]
            self._newest = index, self._gathered(row_N) if self._divided else self._back(row_N)
        return self._newest[1]

    def _near(self, own: Tensor) -> Tensor:
        """The numbers where the vectors are kept; the tensor itself where they are there."""
        return own.to(self._rows_MN.device)

    def _back(self, near: Tensor) -> Tensor:
        """The numbers on the device that multiplies."""
        return near.to(self._device)

    def _gathered(self, near_N: Tensor) -> Tensor:
        """All entries of a vector of which this process keeps some."""
        return self.ranks.gathered(self._back(near_N), self.n)

    def _sum(self, near: Tensor) -> Tensor:
        """Over the processes, which exchange what is on the device."""
        return near if self.ranks.size == 1 else self._near(self.ranks.sum(self._back(near)))

    def drop(self) -> None:
        """Free the memory; the basis is empty then."""
        self.size, self._newest = 0, None
        self._kept = Rows(0, self._rows_MN.shape[1], self.dtype, self._rows_MN.device)
        self._rows_MN = self._kept.data_MN

    def append(self, v_N: Tensor, norm: float = 1.0) -> None:
        """Copy ``v_N`` (orthogonal to all others), divided by its length ``norm``, into the next row."""
        self._kept.reserve(self.size)
        torch.div(self._near(v_N[self._mine]), norm, out=self._rows_MN[self.size])
        self.size, self._newest = self.size + 1, None

    def project_out(
        self,
        w_N: Tensor,
        norm: Tensor | float | None = None,
        lost: float = 0.0,
        beside: Tensor | None = None,
        twice: bool = False,
        whole: bool = True,
    ) -> Removed:
        """Remove from ``w_N``, in place, its components in the span of the basis.

        Gram-Schmidt with another pass only where the one before cancelled (the DGKS criterion), or
        where the loss of orthogonality of the basis itself left more than rounding behind. Each pass reads once
        from the device.

        Args:
            w_N: the vector.
            norm: its length, where that is known.
            lost: largest component of one basis vector in another.
            beside: a number on the device that is read along.
            twice: make two passes for a read, where the first is known to cancel.
            whole: False: of several processes, only this one's entries need be right, as for `append`.
        """
        own_N = w_N[self._mine]
        near_N = self._near(own_N)
        found = self._project_out(near_N, norm, lost, beside, twice)
        if near_N is not own_N:
            own_N.copy_(near_N)
        if whole and self._divided:
            w_N.copy_(self.ranks.gathered(w_N[self._mine], self.n))
        return found

    def _norm(self, own_N: Tensor) -> Tensor:
        """The length of a vector, from this process' entries."""
        norm = euclidean_norm(own_N)
        return norm if self.ranks.size == 1 else self._sum(norm.square()).sqrt()

    def _project_out(
        self,
        w_N: Tensor,
        norm: Tensor | float | None,
        lost: float,
        beside: Tensor | None,
        twice: bool,
    ) -> Removed:
        """`project_out` of this process' entries."""
        norm = self._norm(w_N) if norm is None else norm
        before = self._near(norm) if isinstance(norm, Tensor) else w_N.new_full((), norm)
        beside = w_N.new_zeros(()) if beside is None else self._near(beside)
        q_MN = self.rows
        rounding = _ROUNDING * torch.finfo(w_N.dtype).eps
        removed_M = np.zeros(self.size)
        value, after = 0.0, before
        for _ in range(_PASSES if self.size else 0):
            h_M = self._sum(q_MN @ w_N)
            w_N.addmv_(q_MN.T, h_M, alpha=-1)
            if twice:
                before = self._norm(w_N)
                again_M = self._sum(q_MN @ w_N)
                w_N.addmv_(q_MN.T, again_M, alpha=-1)
                h_M = h_M + again_M
            after = self._norm(w_N)
            read = torch.cat([torch.stack([beside, before, after]), h_M]).cpu().double().numpy()
            value, (was, left), coefficients_M = float(read[0]), read[1:3].tolist(), read[3:]
            removed_M += coefficients_M
            cancelled = left < DGKS_ETA * was
            if not cancelled and lost * np.linalg.norm(coefficients_M) <= rounding * left:
                return Removed(removed_M, left, value)
            before = after
        return Removed(removed_M, float(after), value if self.size else float(beside))

    def continue_from(self, w_N: Tensor, beta: float, lost: float = 0.0) -> Removed:
        """Make the product ``w_N`` of the newest vector orthogonal to all, the recurrence's two terms first.

        What cancels after them is a loss of orthogonality, which is what the DGKS criterion is to see.

        Args:
            w_N: the product, changed in place.
            beta: its component along the vector before the newest.
            lost: see `project_out`.

        Returns:
            What was removed in all; `Removed.beside` is the component along the newest.
        """
        alpha, norm = self.local_terms(w_N, beta)
        found = self.project_out(w_N, norm, lost, beside=alpha, whole=False)
        found.coefficients_M[-1] += found.beside
        if beta:
            found.coefficients_M[-2] += beta
        return found

    def local_terms(self, w_N: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Remove the components along the newest vector and, ``beta``, the one before; (the first, the rest's norm)."""
        own_N = w_N[self._mine]
        near_N = self._near(own_N)
        alpha = self._sum(torch.dot(self.rows[-1], near_N))
        latest = torch.stack([near_N.new_full((), beta), alpha]) if beta else alpha[None]
        near_N.addmv_(self.rows[-len(latest) :].T, latest, alpha=-1)
        if near_N is not own_N:
            own_N.copy_(near_N)
        return alpha, self._norm(near_N)

    def combine(self, s_MK: Float64Array) -> Tensor:
        """The linear combinations ``S^T Q`` of the first ``M`` rows, shape ``(K, n)``."""
        s = torch.as_tensor(s_MK.T.copy(), dtype=self._rows_MN.dtype, device=self._rows_MN.device)
        own_KN = s @ self._rows_MN[: s_MK.shape[0]]
        if not self._divided:
            return self._back(own_KN)
        return torch.stack([self._gathered(own_N) for own_N in own_KN])

    def restart(self, s_MK: Float64Array, keep_last: bool) -> None:
        """Replace the first ``M`` rows by their combinations ``S^T Q``, without a second basis.

        With ``keep_last`` the row after them (the pending residual vector) stays the newest.
        """
        m, k = s_MK.shape
        s = torch.as_tensor(s_MK.T.copy(), dtype=self._rows_MN.dtype, device=self._rows_MN.device)
        chunk = _CHUNK if s.device.type == "cpu" else _CHUNK_LAUNCHED
        for start in range(0, self._rows_MN.shape[1], chunk):
            columns = slice(start, start + chunk)
            self._rows_MN[:k, columns] = s @ self._rows_MN[:m, columns]
        if keep_last:
            self._rows_MN[k] = self._rows_MN[m]
        self.size, self._newest = k + int(keep_last), None
