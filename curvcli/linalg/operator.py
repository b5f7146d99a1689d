"""What an algorithm may ask of a matrix: its size, and products with vectors."""

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curvcli.linalg.ranks import ALONE, Ranks

Float64Array = npt.NDArray[np.float64]

# A Ritz value below this share of the norm is judged against the norm, not against itself.
SMALL = 0.01
# Relative error of a product in units of eps ‖A‖ that a residual is widened by.
ROUNDING = 16
# Entries of a vector up to which it is drawn in one go.
PIECE = 1 << 24


class Space(Protocol):
    """ℝⁿ as it is stored."""

    @property
    def n(self) -> int:
        """Its dimension."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the vectors."""

    @property
    def device(self) -> torch.device:
        """Where the vectors live."""


class SymmetricOperator(Space, Protocol):
    """A real symmetric linear map of ℝⁿ, known only by its products."""

    def matvec(self, v_N: Tensor) -> Tensor:
        """The product with ``v_N``, as a new tensor of the same shape ``(n,)``."""


class Deflated:
    """A on the complement of some of its eigenvectors, P A P with P = I − VᵀV.

    Rounding alone would bring their eigenvalues back into a Krylov space that began without them.

    Args:
        op: A.
        vectors_KN: orthonormal rows V.

    Without the eigenvalue 3 of (1, 1)/√2, only the 1 of (1, −1)/√2 is left:

    >>> from types import SimpleNamespace
    >>> a = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> op = SimpleNamespace(n=2, dtype=a.dtype, device=a.device, matvec=lambda v: a @ v)
    >>> known = torch.full((1, 2), 0.5**0.5, dtype=a.dtype)
    >>> Deflated(op, known).matvec(torch.tensor([1.0, -1.0], dtype=a.dtype)).tolist()
    [1.000000, -1.000000]
    """

    def __init__(self, op: SymmetricOperator, vectors_KN: Tensor) -> None:
        self._op, self._vectors_KN = op, vectors_KN
        self.n, self.dtype, self.device = op.n, op.dtype, op.device
        self.ranks, self.offload = ranks_of(op), offload_of(op)

    def matvec(self, v_N: Tensor) -> Tensor:
        """P A v, for a v of the complement."""
        w_N = self._op.matvec(v_N)
        inside_K = self.ranks.over_entries(self._vectors_KN @ w_N)
        return w_N.sub_(self._vectors_KN.T @ inside_K)


def random_unit_vector(op: Space, generator: torch.Generator) -> Tensor:
    """A vector of shape ``(n,)``, uniform on the unit sphere; of parted vectors, this process' entries.

    Drawn by a CPU generator and moved, so that one seed gives one vector on every device. A long one is drawn twice,
    first for its length: in one go it would take three times the memory of what becomes of it.
    """
    own = ranks_of(op).entries(op.n)
    if op.n <= PIECE:
        z_N = torch.randn(op.n, generator=generator, dtype=torch.float64)
        z_N /= torch.linalg.vector_norm(z_N)
        return z_N[own].to(device=op.device, dtype=op.dtype)
    again = torch.Generator()
    again.set_state(generator.get_state())
    length = math.hypot(*(float(torch.linalg.vector_norm(z)) for z in normals(op.n, again, PIECE)))
    out_N, first = torch.empty(own.stop - own.start, dtype=op.dtype, device=op.device), -own.start
    for piece in normals(op.n, generator, PIECE):
        begin, end = max(first, 0), min(first + len(piece), len(out_N))
        if begin < end:
            out_N[begin:end] = (
                piece[begin - first : end - first].div_(length).to(op.device, op.dtype)
            )
        first += len(piece)
    return out_N


def normals(n: int, generator: torch.Generator, piece: int = PIECE) -> Iterator[Tensor]:
    """``n`` normal numbers in float64, piece by piece: the numbers that one draw of all of them gives.

    Torch turns sixteen uniform numbers at a time into normal ones, and the last sixteen of a draw anew: pieces are
    multiples of that, and the last one is no shorter than the others.

    Args:
        n: how many.
        generator: of the CPU.
        piece: numbers in a piece, a multiple of sixteen.
    """
    pieces = max(1, n // piece)
    for i in range(pieces):
        length = piece if i + 1 < pieces else n - i * piece
        yield torch.randn(length, generator=generator, dtype=torch.float64)


def ranks_of(op: Space) -> Ranks:
    """The processes that work on its products together; only the operators of a network know any."""
    found: Ranks = getattr(op, "ranks", ALONE)
    return found


def holders_of(op: Space) -> Ranks:
    """The processes that each hold a part of its vectors; `ALONE` where each holds all of them."""
    ranks = ranks_of(op)
    return ranks if ranks.parted else ALONE


def offload_of(op: Space) -> str | None:
    """Where its Krylov bases are kept, see `linalg.storage`; None: on its device."""
    found: str | None = getattr(op, "offload", None)
    return found


def orthonormal(vectors_KN: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Rows that span what ``vectors_KN``, which are nearly orthonormal, span.

    >>> orthonormal(torch.tensor([[1.0, 0.0], [0.1, 1.0]])).abs().tolist()
    [[1.0000, 0.0000], [0.0000, 1.0000]]
    """
    if not ranks.parted:
        columns_NK: Tensor = torch.linalg.qr(vectors_KN.T).Q
        return columns_NK.T.contiguous()
    # A factor of the small matrix of scalar products needs no vector as a whole (Cholesky QR).
    lower_KK = torch.linalg.cholesky(ranks.inner(vectors_KN, vectors_KN).double())
    turned: Tensor = torch.linalg.inv(lower_KK).to(vectors_KN) @ vectors_KN
    return turned


def product(a_LM: Float64Array, b_MK: Float64Array) -> Float64Array:
    """A B of small matrices, by torch for the reason given in `eigh`."""
    found_LK: Float64Array = (
        torch.from_numpy(np.ascontiguousarray(a_LM)) @ torch.from_numpy(np.ascontiguousarray(b_MK))
    ).numpy()
    return found_LK


def eigh(matrix_MM: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Eigenvalues (ascending) and eigenvectors (columns) of a small symmetric matrix.

    By torch's LAPACK: numpy's keeps its own threads spinning after each call, which makes the next
    product up to eight times slower.
    """
    values_M, vectors_MM = torch.linalg.eigh(torch.from_numpy(np.ascontiguousarray(matrix_MM)))
    return values_M.numpy(), vectors_MM.numpy()
