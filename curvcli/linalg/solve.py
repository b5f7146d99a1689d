"""Linear systems with a symmetric operator: conjugate gradients and MINRES, with negative curvature seen.

Shapes: ``N`` length of a vector.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvcli.linalg.operator import SymmetricOperator, ranks_of

SolveStatus = Literal["converged", "negative-curvature", "max_matvecs", "stopped"]


@dataclass(frozen=True)
class Solution:
    """An approximate solution of (A + damping I) x = b."""

    x_N: Tensor
    residual: float
    """‖b - (A + damping I) x‖ / ‖b‖, of the recurrence."""
    matvecs: int
    status: SolveStatus
    negative_direction_N: Tensor | None = None
    """A direction d with dᵀ(A + damping I)d ≤ 0, if one was met."""


def conjugate_gradients(
    op: SymmetricOperator,
    b_N: Tensor,
    *,
    damping: float = 0.0,
    tol: float = 1e-6,
    max_matvecs: int = 200,
    stop: Callable[[], object] = lambda: None,
) -> Solution:
    """Solve (A + damping I) x = b for a positive (semi-)definite A; ends at negative curvature.

    Source: Hestenes & Stiefel, J. Res. Nat. Bur. Standards 49 (1952).

    >>> from types import SimpleNamespace
    >>> a = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> op = SimpleNamespace(n=2, dtype=a.dtype, device=a.device, matvec=lambda v: a @ v)
    >>> conjugate_gradients(op, torch.tensor([3.0, 3.0], dtype=a.dtype)).x_N.tolist()
    [1.000000, 1.000000]
    """
    ranks = ranks_of(op)
    x_N, r_N, p_N = torch.zeros_like(b_N), b_N.clone(), b_N.clone()
    norm_b = float(ranks.norm(b_N))
    if norm_b == 0.0:
        return Solution(x_N, 0.0, 0, "converged")
    rr = norm_b**2
    for used in range(max_matvecs):
        if stop():
            return Solution(x_N, math.sqrt(rr) / norm_b, used, "stopped")
        ap_N = op.matvec(p_N).add_(p_N, alpha=damping)
        along = ranks.dot(p_N, ap_N)
        rest_N = torch.addcmul(r_N, ap_N, rr / along, value=-1)
        # The only read of a step: the residual is computed before its curvature is known to be positive.
        curvature, after = torch.stack([along, ranks.dot(rest_N, rest_N)]).tolist()
        if curvature <= 0.0:
            return Solution(x_N, math.sqrt(rr) / norm_b, used + 1, "negative-curvature", p_N)
        x_N.add_(p_N, alpha=rr / curvature)
        r_N, before, rr = rest_N, rr, after
        if math.sqrt(rr) <= tol * norm_b:
            return Solution(x_N, math.sqrt(rr) / norm_b, used + 1, "converged")
        p_N.mul_(rr / before).add_(r_N)
    return Solution(x_N, math.sqrt(rr) / norm_b, max_matvecs, "max_matvecs")


def minres(
    op: SymmetricOperator,
    b_N: Tensor,
    *,
    tol: float = 1e-6,
    max_matvecs: int = 200,
    stop_at_negative_curvature: bool = False,
    stop: Callable[[], object] = lambda: None,
) -> Solution:
    """Minimise ‖b - A x‖ over growing Krylov spaces, for an A that may be indefinite.

    The residual r_{k-1} is a direction of non-positive curvature as soon as c_{k-1} γ_k ≥ 0 (Liu & Roosta, SIAM J.
    Optim. 32, 2022, lemma 3.3), which costs nothing to see.

    Source: Paige & Saunders, SIAM J. Numer. Anal. 12 (1975).

    >>> from types import SimpleNamespace
    >>> a = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    >>> op = SimpleNamespace(n=2, dtype=a.dtype, device=a.device, matvec=lambda v: a @ v)
    >>> minres(op, torch.tensor([1.0, 2.0], dtype=a.dtype)).x_N.tolist()
    [1.000000, -2.000000]
    """
    x_N, ranks = torch.zeros_like(b_N), ranks_of(op)
    norm_b = float(ranks.norm(b_N))
    if norm_b == 0.0:
        return Solution(x_N, 0.0, 0, "converged")
    previous_N, q_N = torch.zeros_like(b_N), b_N / norm_b
    beta, phi = 0.0, norm_b
    cosine, sine, delta_next, epsilon_next = -1.0, 0.0, 0.0, 0.0
    d_N, d_before_N = torch.zeros_like(b_N), torch.zeros_like(b_N)
    r_N = b_N.clone()
    negative_N: Tensor | None = None
    eps = torch.finfo(b_N.dtype).eps
    largest = 0.0
    for used in range(1, max_matvecs + 1):
        if stop():
            return Solution(x_N, phi / norm_b, used - 1, "stopped", negative_N)
        w_N = op.matvec(q_N)
        along = ranks.dot(q_N, w_N)
        w_N = torch.addcmul(w_N, q_N, along, value=-1).sub_(previous_N, alpha=beta)
        alpha, beta_next = torch.stack([along, ranks.norm(w_N)]).tolist()
        largest = max(largest, abs(alpha), beta_next)
        # The last rotation applied to the new column of T.
        delta = cosine * delta_next + sine * alpha
        gamma = sine * delta_next - cosine * alpha
        epsilon, epsilon_next = epsilon_next, sine * beta_next
        delta_next = -cosine * beta_next
        if negative_N is None and cosine * gamma >= 0.0:
            negative_N = r_N.clone()
            if stop_at_negative_curvature:
                return Solution(x_N, phi / norm_b, used, "negative-curvature", negative_N)
        length = math.hypot(gamma, beta_next)
        if length <= eps * largest:  # A is singular on this space: nothing more can be gained
            return Solution(x_N, phi / norm_b, used, "converged", negative_N)
        cosine, sine = gamma / length, beta_next / length
        tau, phi = cosine * phi, sine * phi
        new_N = (q_N - delta * d_N - epsilon * d_before_N) / length
        d_before_N, d_N = d_N, new_N
        x_N.add_(d_N, alpha=tau)
        if phi <= tol * norm_b or beta_next <= eps * largest:
            return Solution(x_N, phi / norm_b, used, "converged", negative_N)
        next_N = w_N / beta_next
        r_N.mul_(sine**2).sub_(next_N, alpha=phi * cosine)
        previous_N, q_N, beta = q_N, next_N, beta_next
    return Solution(x_N, phi / norm_b, max_matvecs, "max_matvecs", negative_N)
