"""How far new Krylov vectors have lost their orthogonality, estimated without reading the basis.

Simon, Linear Algebra and its Applications 61 (1984) and Math. Comp. 42 (1984): the components ω_jk = q_k·q_j of the
newest vectors obey the Lanczos recurrence itself, so that their growth follows from the small projected matrix.
As long as they stay below √eps, the projected matrix is right to rounding and no copies of eigenvalues appear, so
that a vector need not be orthogonalised against the basis, whose reading takes most of the time of a step. What
rounding adds to the recurrence is not modelled here but measured, whenever a vector is orthogonalised.

Shapes: ``M`` vectors in the basis.
"""

import math

import numpy as np

from curvcli.linalg.operator import Float64Array

# Components that are left of a vector which was orthogonalised, in units of eps.
_LEFT = 4
# Estimates are taken to be so many times what was found of the one before.
_MARGIN = 4
# The recurrence couples a vector to two before it: where it begins, and after a vector that it does not explain,
# so many have to be orthogonalised.
_COUPLED = 2


# Share of the loss allowed that estimates may reach: they have been found up to ten times too small.
_SAFETY = 0.1


class Orthogonality:
    """The estimates for the two newest vectors of a basis.

    Args:
        eps: of the vectors' floating-point type.
    """

    def __init__(self, eps: float) -> None:
        self.limit = 0.0
        """Largest component, in units of the matrix, that may stay in a vector; 0: all are removed."""
        self.partial = False
        """Whether any vector was left as it was."""
        self._eps = eps
        self._noise = 0.0
        self._due = _COUPLED
        self._in_a_row = 0
        self._newest_M = self._before_M = np.zeros(0)
        self._expected_M = np.zeros(0)

    @property
    def lost(self) -> float:
        """Largest component of one vector of the basis in another, beyond rounding."""
        return math.sqrt(self._eps) if self.partial else 0.0

    def suffices(self, t_MM: Float64Array, alpha: float, beta: float) -> bool:
        """Whether A q − α q − β q₋ (of length ``beta``) may become the next vector as it is.

        Args:
            t_MM: projected matrix of the vectors before q, bordered by the coefficient between q and the last of them:
                shape (m + 1, m + 1) for the m-th vector q, whose own row and column is the last.
            alpha: qᵀ A q.
            beta: norm of what is left.
        """
        m = len(t_MM) - 1
        if self._due or self.limit == 0.0:
            return False
        newest_M = self._newest_M
        expected_M = np.append(t_MM[:m, :m] @ newest_M - alpha * newest_M, 0.0)
        expected_M[: m - 1] -= t_MM[m, m - 1] * self._before_M
        expected_M += np.copysign(self._noise, expected_M)
        self._expected_M = expected_M
        return float(np.abs(expected_M).max()) <= min(
            self.limit, _SAFETY * math.sqrt(self._eps) * beta
        )

    def kept(self, beta: float) -> None:
        """The vector that `suffices` was asked about is the newest one as it is."""
        self._in_a_row = 0
        self.partial = True
        self._before_M, self._newest_M = self._newest_M, self._expected_M / beta

    def removed(self, components_M: Float64Array) -> None:
        """The newest vector was orthogonalised, which removed these components, in units of the matrix."""
        found = float(np.abs(components_M).max())
        if self._in_a_row >= _COUPLED:
            self._noise = max(self._noise, found)
        elif len(self._expected_M):
            expected = float(np.abs(self._expected_M).max())
            self._noise *= _MARGIN * found / expected if expected else 1.0
        self._expected_M = np.zeros(0)
        self._in_a_row += 1
        self._due = self._due - 1 if self._due else _COUPLED - 1
        self._before_M = self._newest_M
        self._newest_M = np.full(len(components_M), _LEFT * self._eps)
