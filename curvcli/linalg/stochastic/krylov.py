"""Krylov spaces on which sums over the spectrum are exact.

Shapes: ``N`` length of a vector, ``M`` vectors of Q, ``L`` all Krylov vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curvcli.linalg.basis import Basis
from curvcli.linalg.operator import (
    Float64Array,
    SymmetricOperator,
    eigh,
    holders_of,
    offload_of,
    random_unit_vector,
)
from curvcli.linalg.stochastic.quadrature import random_complement

Function = Callable[[Float64Array], Float64Array]
# Fewer steps do not tell how a Gauss rule converges.
_MIN_STEPS = 8


@dataclass(frozen=True)
class Krylov:
    """Q, the first M of L Krylov vectors, and T = Vᵀ A V of all of them."""

    vectors_LN: Tensor
    kept: int
    t_LL: Float64Array

    @property
    def kept_MN(self) -> Tensor:
        """Q."""
        return self.vectors_LN[: self.kept]

    def trace_of(self, function: Function) -> float:
        """tr Qᵀ f(A) Q, by f(T)."""
        theta_L, s_LL = eigh(self.t_LL)
        return float(((s_LL[: self.kept] ** 2) @ function(theta_L)).sum())

    def diagonal(self) -> Tensor:
        """Σ_j q_j ⊙ A q_j over the vectors of Q, shape (n,)."""
        t_ML = torch.as_tensor(self.t_LL[: self.kept]).to(self.vectors_LN)
        return (self.kept_MN * (t_ML @ self.vectors_LN)).sum(0)


def krylov(
    op: SymmetricOperator,
    kept: int,
    generator: torch.Generator,
    *,
    functions: Sequence[Function] = (),
    tol: float = 0.0,
    max_steps: int = 100,
    stop: Callable[[], object] = lambda: None,
) -> Krylov:
    """``kept`` Krylov vectors, and as many more as Gauss rules of ``functions`` need.

    The rule of the start vector by s steps is held against those of s/2 and 3s/4 steps: s is enough when they differ by
    less than ``tol``. It is a random vector of the whole space, with the outliers that the probes do not see.

    Args:
        op: A.
        kept: vectors of Q.
        generator: of the start vector.
        functions: whose Gauss rules are to be right; none: one step.
        tol: relative to the value.
        max_steps: at most.
        stop: asked before each product.
    """
    most = min(op.n, kept + (max_steps if functions else 1))
    basis = Basis(op.n, most, op.dtype, op.device, holders_of(op), offload_of(op))
    basis.append(random_unit_vector(op, generator))
    t_LL = np.zeros((most, most))
    eps = torch.finfo(op.dtype).eps
    done = 0
    while done < most and (stop() is None or done == 0):
        w_N = op.matvec(basis[done])
        column, beta, _ = basis.project_out(w_N, twice=True)
        t_LL[: done + 1, done] = t_LL[done, : done + 1] = column
        done += 1
        if done == most or (done > kept and _enough(t_LL, done - kept, functions, tol)):
            break
        if beta <= 10 * eps * np.abs(t_LL).max():
            basis.append(random_complement(op, basis.whole(), generator))
            beta = 0.0
        else:
            basis.append(w_N.div_(beta))
        t_LL[done, done - 1] = t_LL[done - 1, done] = beta
    whole = done == op.n
    kept = done if whole else min(kept, done)
    return Krylov(basis.whole()[:done], kept, t_LL[:done, :done])


def _enough(t_LL: Float64Array, steps: int, functions: Sequence[Function], tol: float) -> bool:
    """Whether so many steps are enough for the Gauss rule of the start vector."""
    if not functions:
        return True
    if steps < _MIN_STEPS or steps % 4:
        return False
    for function in functions:
        values = []
        for s in (steps, 3 * steps // 4, steps // 2):
            theta_M, s_MM = eigh(t_LL[:s, :s])
            values.append(float(s_MM[0] ** 2 @ function(theta_M)))
        if max(abs(v - values[0]) for v in values) > tol * abs(values[0]):
            return False
    return True
