"""Ritz pairs of a Lanczos factorisation: which are wanted, how far off they may be, which have converged.

Shapes: ``M`` size of the basis.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from curvcli.linalg.lanczos.factorization import LanczosState
from curvcli.linalg.operator import ROUNDING, SMALL, Float64Array, eigh, product

Order = Literal["value", "magnitude"]


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


@dataclass(frozen=True)
class Spectrum:
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


def ritz(state: LanczosState, wanted: Wanted, tol: float) -> Spectrum:
    """Ritz pairs of the present basis and which have converged."""
    theta_M, s_MM = eigh(state.projected)
    bounds_M = np.zeros_like(theta_M)
    for tail in (*state.suspended, *([state.live] if state.live else [])):
        bounds_M = bounds_M + tail.share(s_MM)
    if state.orthogonality.partial:
        m = len(theta_M)
        left_out_MM = product(state.left_out_MM[:m, :m], s_MM)
        bounds_M = bounds_M + np.linalg.norm(left_out_MM, axis=0)
    norm = float(np.abs(theta_M).max())
    limit_M = tol * np.maximum(np.abs(theta_M), SMALL * norm)
    # Room for the rounding that the true residual will contain, where the tolerance leaves any.
    rounding = ROUNDING * torch.finfo(state.basis.dtype).eps * norm
    converged_M = bounds_M <= np.maximum(0.95 * limit_M - rounding, 0.25 * limit_M)
    return Spectrum(theta_M, s_MM, bounds_M, limit_M, converged_M, *wanted.select(theta_M))


def neighbours(spectrum: Spectrum, wanted: Wanted, m: int, room: int) -> list[int]:
    """Indices of the wanted Ritz values and of those next to them, about half of the ``m``, ``room`` at most."""
    extra = max(0, min(room - wanted.count, (m - wanted.count) // 2))
    extra_bottom = extra * wanted.bottom // max(1, wanted.count)
    wider = Wanted(wanted.top + extra - extra_bottom, wanted.bottom + extra_bottom, wanted.order)
    top, bottom = wider.select(spectrum.theta_M)
    return sorted({*top, *bottom})
