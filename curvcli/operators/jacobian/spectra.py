"""Norms and singular values of all Jacobians of a batch, each with its error.

Shapes: ``S`` matrices, each ``(M, N)``; ``K`` singular values; ``P`` probes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from curvcli.linalg.operator import ROUNDING
from curvcli.linalg.stochastic.probes import random_signs
from curvcli.linalg.svd.bidiagonal import BatchedOperator, without
from curvcli.linalg.svd.golub_kahan import Triplets, golub_kahan, true_residuals
from curvcli.operators.jacobian.jacobian import Jacobian

Method = Literal["dense", "golub-kahan"]


@dataclass(frozen=True)
class Settings:
    """How norms and singular values are computed."""

    top: int = 5
    exact: int = 64
    """Rows or columns up to which the matrices are formed."""
    method: Literal["auto", "dense", "golub-kahan"] = "auto"
    tol: float = 1e-3
    max_steps: int = 100
    probes: int = 16
    seed: int = 0
    keep: bool = False
    """Return the matrices too."""
    stop: Callable[[], bool] = lambda: False
    progress: Callable[[int], None] = lambda _: None

    def chosen(self, op: BatchedOperator) -> Method:
        """Dense where the shorter side is at most ``exact``."""
        if self.method != "auto":
            return self.method
        return "dense" if min(op.rows, op.columns) <= self.exact else "golub-kahan"


@dataclass(frozen=True)
class Spectra:
    """Of every matrix; all tensors float64 on the CPU, NaN where a Jacobian is not finite."""

    rows: int
    columns: int
    frobenius_S: Tensor
    frobenius_error_S: Tensor
    """Standard error, and rounding."""
    values_SK: Tensor
    """Leading singular values."""
    residuals_SK: Tensor
    """ρ: some singular value lies within value ± ρ."""
    converged_SK: Tensor
    all_SL: Tensor | None
    """All min(m, n) singular values, where the matrices were formed."""
    steps: int
    rechecked: bool
    complete: bool
    matrices_SMN: Tensor | None = None

    def rechecked_for(self, tol: float) -> "Spectra":
        """The same after its residuals were widened."""
        floor_SK = torch.maximum(self.values_SK, 0.01 * self.values_SK[:, :1])
        return replace(self, converged_SK=self.residuals_SK <= tol * floor_SK)

    @property
    def rounding_S(self) -> Tensor:
        """What a singular value of a formed matrix may be off by."""
        return self.residuals_SK[:, 0]

    @property
    def smallest_S(self) -> Tensor | None:
        """The smallest of the min(m, n) singular values."""
        return None if self.all_SL is None else self.all_SL[:, -1]

    @property
    def condition_S(self) -> Tensor | None:
        """σ_max / σ_min; infinite where σ_min cannot be told from zero."""
        if self.all_SL is None:
            return None
        largest, smallest = self.all_SL[:, 0], self.all_SL[:, -1]
        return torch.where(
            smallest > self.rounding_S,
            largest / smallest,
            torch.where(largest.isnan(), torch.nan, torch.inf),
        )

    @property
    def effective_rank_S(self) -> Tensor | None:
        """exp(−Σ p log p) with p = σ / Σσ (Roy & Vetterli, EUSIPCO 2007)."""
        if self.all_SL is None:
            return None
        p_SL = self.all_SL / self.all_SL.sum(1, keepdim=True)
        rank_S: Tensor = torch.special.entr(p_SL).sum(1).exp()
        return rank_S

    @property
    def stable_rank_S(self) -> Tensor:
        """‖J‖_F² / ‖J‖₂², at most the rank."""
        return (self.frobenius_S / self.values_SK[:, 0]).square()

    @property
    def chi_S(self) -> Tensor:
        """χ = ‖J‖_F² / n: the mean squared stretch of a random input direction."""
        return self.frobenius_S.square() / self.columns


def spectra(op: Jacobian, settings: Settings, seeds: Sequence[int]) -> Spectra:
    """Norms and leading singular values of all matrices of ``op``.

    Args:
        op: the Jacobians.
        settings: how.
        seeds: one for each matrix.
    """
    if settings.chosen(op) == "dense":
        return _dense(op, settings)
    top = min(settings.top, op.rows, op.columns)
    found = golub_kahan(
        op,
        top,
        tol=settings.tol,
        max_steps=settings.max_steps,
        seeds=seeds,
        stop=settings.stop,
        progress=settings.progress,
    )
    if settings.stop():
        values_SK, residuals_SK = found.values_SK, found.bounds_SK
        residuals_SK = residuals_SK + _rounding(op) * values_SK[:, :1]
    else:
        values_SK, residuals_SK = true_residuals(op, found)
    norm_S, error_S = frobenius(op, found, settings.probes, seeds)
    broken_S = ~op.finite_S.cpu()
    for t in (values_SK, residuals_SK, norm_S, error_S):
        t[broken_S] = torch.nan
    floor_SK = torch.maximum(values_SK, 0.01 * values_SK[:, :1])
    return Spectra(
        rows=op.rows,
        columns=op.columns,
        frobenius_S=norm_S,
        frobenius_error_S=error_S.hypot(_rounding(op) * norm_S),
        values_SK=values_SK,
        residuals_SK=residuals_SK,
        converged_SK=residuals_SK <= settings.tol * floor_SK,
        all_SL=None,
        steps=found.steps,
        rechecked=found.rechecked,
        complete=found.complete,
    )


def frobenius(
    op: BatchedOperator, found: Triplets, probes: int, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """‖A‖_F and its standard error: exact on the Krylov basis Q, Hutchinson on the rest.

    ‖A‖_F² = ‖QᵀA‖_F² + E ‖Aᵀ(1 − QQᵀ)z‖² with Rademacher z (Meyer, Musco, Musco & Woodruff, Hutch++, SOSA
    2021, for AAᵀ); the first part is known from the recurrence.
    """
    if found.basis_SJM.shape[1] == min(op.rows, op.columns):
        return found.captured_S.sqrt(), torch.zeros_like(found.captured_S)
    generators = [torch.Generator().manual_seed(seed + 104729) for seed in seeds]
    squares = []
    for _ in range(probes):
        like = torch.empty(0, dtype=op.dtype, device=op.device)
        z_SM = torch.stack([random_signs(op.rows, g, like) for g in generators])
        rest_SN = op.vjp(without(found.basis_SJM, z_SM))
        squares.append(rest_SN.square().sum(1).cpu().double())
    squares_PS = torch.stack(squares)
    norm_S = (found.captured_S + squares_PS.mean(0)).sqrt()
    error_S = squares_PS.std(0) / probes**0.5 / (2 * norm_S)
    return norm_S, torch.where(norm_S > 0, error_S, 0.0)


def _dense(op: Jacobian, settings: Settings) -> Spectra:
    matrices_SMN = op.dense()
    finite_S = op.finite_S.cpu()
    wide_SMN = matrices_SMN.cpu().double()
    all_SL = torch.linalg.svdvals(wide_SMN)
    norm_S = torch.linalg.matrix_norm(wide_SMN)
    for t in (all_SL, norm_S):
        t[~finite_S] = torch.nan
    values_SK = all_SL[:, : settings.top]
    rounding_S1 = _rounding(op) * all_SL[:, :1]
    return Spectra(
        rows=op.rows,
        columns=op.columns,
        frobenius_S=norm_S,
        frobenius_error_S=_rounding(op) * norm_S,
        values_SK=values_SK,
        residuals_SK=rounding_S1.expand_as(values_SK).clone(),
        converged_SK=torch.ones_like(values_SK, dtype=torch.bool),
        all_SL=all_SL,
        steps=0,
        rechecked=True,
        complete=True,
        matrices_SMN=wide_SMN if settings.keep else None,
    )


def _rounding(op: BatchedOperator) -> float:
    return float(ROUNDING * torch.finfo(op.dtype).eps)
