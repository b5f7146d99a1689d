"""The orthonormal basis of a Krylov space: the one place where many long vectors are kept.

Shapes: ``N`` length of a vector, ``M`` vectors in the basis, ``K`` vectors asked for.
"""

import torch
from torch import Tensor

from curvcli.linalg.operator import Float64Array
from curvcli.linalg.vectors import euclidean_norm

# Daniel, Gragg, Kaufman & Stewart (Math. Comp. 30, 1976): one pass of Gram-Schmidt is enough when
# the vector keeps at least this share of its length.
DGKS_ETA = 2**-0.5
# Passes at most: each leaves the share `lost`, at worst √eps, of what it removes, so that three of them reach rounding.
_PASSES = 3
# Components, in units of eps times its length, that a vector may keep in a basis that is not quite orthonormal.
_ROUNDING = 10
# Columns rotated at a time in a restart, so that it needs no second basis.
_CHUNK = 1 << 16


class Basis:
    """Up to ``capacity`` orthonormal vectors of length ``n``, stored as the rows of one matrix.

    Row ``size - 1`` is the newest vector. All long-vector arithmetic of the Krylov methods is here.
    """

    def __init__(self, n: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n = n
        self.capacity = min(capacity, n)
        self.size = 0
        self._rows_MN = torch.empty(self.capacity, n, dtype=dtype, device=device)

    @property
    def rows(self) -> Tensor:
        """The vectors as a view of shape ``(size, n)``."""
        return self._rows_MN[: self.size]

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the vectors."""
        return self._rows_MN.dtype

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]

    def drop(self) -> None:
        """Free the memory; the basis is empty then."""
        self.size = 0
        self._rows_MN = self._rows_MN.new_empty(0, self.n)

    def append(self, v_N: Tensor, norm: float = 1.0) -> None:
        """Copy ``v_N`` (orthogonal to all others), divided by its length ``norm``, into the next row."""
        torch.div(v_N, norm, out=self._rows_MN[self.size])
        self.size += 1

    def project_out(
        self, w_N: Tensor, norm: float | None = None, lost: float = 0.0
    ) -> tuple[Tensor, float]:
        """Remove from ``w_N``, in place, its components in the span of the basis.

        Gram-Schmidt with another pass only where the one before cancelled (the DGKS criterion), or
        where the loss of orthogonality of the basis itself left more than rounding behind.

        Args:
            w_N: the vector.
            norm: its length, where that is known.
            lost: largest component of one basis vector in another.

        Returns:
            The coefficients removed, shape ``(size,)``, and the remaining norm.
        """
        after = float(euclidean_norm(w_N)) if norm is None else norm
        removed_M = w_N.new_zeros(self.size)
        if self.size == 0:
            return removed_M, after
        q_MN = self.rows
        rounding = _ROUNDING * torch.finfo(w_N.dtype).eps
        for _ in range(_PASSES):
            before = after
            h_M = q_MN @ w_N
            w_N.addmv_(q_MN.T, h_M, alpha=-1)
            removed_M += h_M
            after = float(euclidean_norm(w_N))
            cancelled = after < DGKS_ETA * before
            left = lost * float(euclidean_norm(h_M)) if lost else 0.0
            if not cancelled and left <= rounding * after:
                break
        return removed_M, after

    def combine(self, s_MK: Float64Array) -> Tensor:
        """The linear combinations ``S^T Q`` of the first ``M`` rows, shape ``(K, n)``."""
        s = torch.as_tensor(s_MK.T.copy(), dtype=self._rows_MN.dtype, device=self._rows_MN.device)
        return s @ self._rows_MN[: s_MK.shape[0]]

    def restart(self, s_MK: Float64Array, keep_last: bool) -> None:
        """Replace the first ``M`` rows by their combinations ``S^T Q``, without a second basis.

        With ``keep_last`` the row after them (the pending residual vector) stays the newest.
        """
        m, k = s_MK.shape
        s = torch.as_tensor(s_MK.T.copy(), dtype=self._rows_MN.dtype, device=self._rows_MN.device)
        for start in range(0, self.n, _CHUNK):
            columns = slice(start, start + _CHUNK)
            self._rows_MN[:k, columns] = s @ self._rows_MN[:m, columns]
        if keep_last:
            self._rows_MN[k] = self._rows_MN[m]
        self.size = k + int(keep_last)
