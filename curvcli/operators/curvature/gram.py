"""The whole non-zero spectrum of JᵀCJ where batch × outputs is small: that of the Gram matrix of its rows.

With C = L Lᵀ the matrix is BᵀB, B = LᵀJ, and its non-zero eigenvalues are those of BBᵀ; a unit eigenvector u of BBᵀ
gives the eigenvector Bᵀu / √λ (Dangel, Tatzel & Hennig, "ViViT", TMLR 2022).

Shapes: ``N`` parameters, ``R`` rows of B, ``S`` samples, ``M`` outputs of each, ``K`` vectors.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curvcli.linalg.lanczos.lanczos import LanczosResult
from curvcli.linalg.operator import ROUNDING, Float64Array, holders_of
from curvcli.linalg.ranks import Ranks
from curvcli.linalg.vectors import double
from curvcli.operators.autodiff.pullback import pullback
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.rounding import saturation

# Rows are off by eps ‖B‖, so that a vector Bᵀu / √λ with λ above so many eps λ₁ is off by √eps / 10.
_NOISE = 100
# Columns of B multiplied at a time in float64.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class GramSpectrum:
    """All eigenvalues of a positive semi-definite matrix of low rank."""

    values_R: Float64Array
    """Of BBᵀ and weight decay, largest first."""
    error: float
    """Bound on the error of each by rounding."""
    others: int
    """Further eigenvalues of the n × n matrix,"""
    rest: float
    """all of this value: the weight decay."""
    certain: bool
    """Whether the rest is exact: no probability was so near 0 or 1 that its curvature was rounded to zero."""
    rank: int
    """Eigenvalues whose vectors are known: of those at the rounding of the rows they are noise."""
    ranks: Ranks
    """The processes that hold the vectors."""
    _rows_RN: Tensor
    _left_RR: Tensor

    def all_values(self) -> Float64Array:
        """All n eigenvalues, largest first."""
        return np.concatenate([self.values_R, np.full(self.others, self.rest)])

    def extremes(self, top: int, bottom: int) -> LanczosResult:
        """The ``top`` largest and ``bottom`` smallest eigenpairs, as a finished run would give them.

        The smallest are those of the rest, and have no vectors, where there are such.
        """
        low = bottom if not self.others else 0
        top = min(top, len(self.values_R))
        values_K = np.concatenate([self.values_R[:top], self.values_R[::-1][:low]])
        chosen = [*range(top), *(-1 - i for i in range(low))]
        edges = [self.values_R[-1], self.values_R[0], *([self.rest] if self.others else [])]
        return LanczosResult(
            values_K=values_K,
            bounds_K=np.full(len(values_K), self.error),
            converged_K=(True,) * len(values_K),
            top=top,
            vectors_KN=self.vectors(len(self.values_R))[chosen],
            status="converged",
            matvecs=0,
            restarts=0,
            norm=float(self.values_R[0]),
            lower=float(min(edges)),
            upper=float(max(edges)),
            ritz_values_M=self.values_R[::-1].copy(),
            copies_found=0,
            rechecked=0,
            tails=(),
        )

    def diagonal(self) -> Tensor:
        """The diagonal of the n × n matrix, float64."""
        return double(self._rows_RN).square().sum(0) + self.rest

    def products(self, vectors_KN: Tensor) -> Tensor:
        """BᵀB and weight decay times each vector: with the rounding of the rows, not that of other products."""
        rows_RN = self._rows_RN
        inner_KR = self.ranks.over_entries(vectors_KN @ rows_RN.T)
        products_KN: Tensor = inner_KR @ rows_RN + self.rest * vectors_KN
        return products_KN

    def vectors(self, count: int) -> Tensor:
        """The first ``count`` eigenvectors, unit length, shape (K, n)."""
        u_RK = self._left_RR[:, :count].to(self._rows_RN)
        vectors_KN = u_RK.T @ self._rows_RN
        norms_K1 = self.ranks.norms(vectors_KN)[:, None]
        return vectors_KN / norms_K1.clamp(min=torch.finfo(vectors_KN.dtype).tiny)


def gram_spectrum(operator: GaussNewton, limit: int) -> GramSpectrum | None:
    """All eigenvalues of ``operator``, from one backward pass for each row of B.

    Args:
        operator: a matrix JᵀCJ.
        limit: rows at most.

    Returns:
        None where there are more rows, they do not fit in memory, or C has negative eigenvalues.

    One sample of a linear regression gives 2 x xᵀ, of rank one:

    >>> from curvcli.loading.loss import loss_terms
    >>> from curvcli.objective.batch import Batch
    >>> from curvcli.objective.checks import make_objective
    >>> x, y = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 1)
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> objective = make_objective(model, [Batch(((x,), {}, y), 1)], loss_terms("mse", {}))
    >>> spectrum = gram_spectrum(GaussNewton(objective), limit=10)
    >>> spectrum.all_values().tolist()
    [50.0000, 0.0000]
    """
    objective = operator.objective
    single = 1 if objective.splittable else max(batch.size for batch in objective.batches)
    blocks: list[Tensor] = []
    rows, saturates, certain = 0, saturation(objective) > 0, True
    for batch in objective.batches:
        for piece in batch.pieces(single):
            outputs = operator.outputs_of(piece)
            factors_SMR = operator.factors(outputs, piece)
            if factors_SMR is None:
                return None
            columns_RM = factors_SMR[0].T
            certain &= not saturates or bool((factors_SMR[0].abs().amax(1) > 0).all())
            columns_RM = columns_RM[columns_RM.abs().amax(1) > 0]
            rows += len(columns_RM)
            needed = 2 * len(columns_RM) * operator.length * operator.dtype.itemsize
            if rows > limit or operator.ranks.largest(int(needed > operator.room())):
                return None
            blocks.append(_pulled(operator, outputs, columns_RM))
    rows_RN = torch.cat(blocks)
    if not len(rows_RN):
        rows_RN = rows_RN.new_zeros(1, operator.length)
    parts = (double(part) for part in rows_RN.split(_CHUNK, 1))
    own_RR = sum((part @ part.T for part in parts), double(rows_RN.new_zeros(())))
    gram_RR = operator.ranks.over_entries(own_RR)
    values_R, left_RR = torch.linalg.eigh(gram_RR)
    values_R = values_R.flip(0).clamp(min=0)[: operator.n]
    eps = torch.finfo(operator.dtype).eps
    rank = int((values_R > _NOISE * eps * values_R[0]).sum())
    decay = objective.weight_decay
    return GramSpectrum(
        values_R=(values_R + decay).cpu().numpy(),
        error=float(ROUNDING * eps * values_R[0]),
        others=operator.n - len(values_R),
        rest=decay,
        certain=certain,
        rank=rank,
        ranks=holders_of(operator),
        _rows_RN=rows_RN,
        _left_RR=left_RR.flip(1),
    )


def _pulled(operator: GaussNewton, outputs: Tensor, columns_RM: Tensor) -> Tensor:
    """Jᵀ times each row of ``columns_RM``, shape (R, n)."""
    out_RN = columns_RM.new_zeros(len(columns_RM), operator.length)
    if not outputs.requires_grad:
        return out_RN
    objective = operator.objective
    if operator.ranks.parted and operator.ranks.rank > 0:
        # All processes have the same rows, and gathered weights sum up what each of them sends back.
        columns_RM = torch.zeros_like(columns_RM)
    with operator.kernels.active():
        for row_N, column_M in zip(out_RN, columns_RM, strict=True):
            column = column_M.reshape(outputs.shape)
            parts = pullback([outputs], objective.parameters, [column])
            row_N.copy_(objective.flatten(parts))
    return out_RN
