"""Steps that methods of optimisation would take from θ, each from products with its own matrix.

Shapes: ``N`` parameters, ``K`` eigenpairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvcli.linalg.lanczos.lanczos import LanczosResult, lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.solve import Solution, conjugate_gradients, minres
from curvcli.linalg.vectors import double
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.hessian import Hessian

# A quasi-Newton step may be so many times longer than the way on which its history was gathered.
_TRUST = 2.0


@dataclass(frozen=True)
class Step:
    """A step Δθ and how it was found."""

    delta_N: Tensor
    status: str
    residual: float | None = None
    """Relative residual of the linear system, where one was solved."""


class StepMaker:
    """Makes the steps by name; products and the eigenpairs they need are shared between them.

    Args:
        hessian: ∇²L.
        memory: bytes the process may use in all.
        tol: relative residual of the linear systems.
        max_matvecs: products of one system at most.
        damping: relative to ‖H‖; added to Gauss-Newton, and the least |λ| that saddle-free Newton divides by.
        pairs: eigenpairs at each end that saddle-free Newton treats by themselves.
        history: line-searched steps that L-BFGS learns from.
        stop: ends a system early.
    """

    def __init__(
        self,
        hessian: Hessian,
        *,
        memory: int | None,
        tol: float,
        max_matvecs: int,
        damping: float,
        pairs: int,
        history: int,
        seed: int,
        stop: Callable[[], object],
    ) -> None:
        self.hessian = hessian
        self.objective, self.ranks = hessian.objective, hessian.ranks
        self.gradient_N = hessian.gradient
        self.memory, self.tol, self.max_matvecs = memory, tol, max_matvecs
        self.damping, self.pairs, self.history, self.seed, self.stop = (
            damping,
            pairs,
            history,
            seed,
            stop,
        )
        self._found: LanczosResult | None = None
        self.makers: dict[str, Callable[[], Step]] = {
            "gradient": self.gradient,
            "newton": self.newton,
            "newton-npc": self.newton_npc,
            "saddle-free": self.saddle_free,
            "gauss-newton": self.gauss_newton,
            "lbfgs": self.lbfgs,
        }

    @property
    def found(self) -> LanczosResult:
        """The extreme eigenpairs of H, computed when first asked for."""
        if self._found is None:
            n = self.objective.n
            wanted = Wanted(min(self.pairs, n), min(self.pairs, n - min(self.pairs, n)))
            self._found = lanczos(
                self.hessian, wanted, tol=1e-2, max_matvecs=self.max_matvecs,
                capacity=self.hessian.plan.capacity, seed=self.seed,
            )  # fmt: skip
        return self._found

    def gradient(self) -> Step:
        """−t g with the t that minimises the second-order model on the line."""
        g_N = self.gradient_N
        gg = float(self.ranks.dot(g_N, g_N))
        curvature = float(self.ranks.dot(g_N, self.hessian.matvec(g_N)))
        if curvature > 0:
            return Step(g_N * (-gg / curvature), "exact line minimum")
        norm = max(self.found.norm, torch.finfo(g_N.dtype).tiny)
        return Step(g_N * (-1 / norm), "negative curvature: length 1/‖H‖")

    def newton(self) -> Step:
        """−H⁺g by MINRES, through negative curvature: it goes to the stationary point of the model."""
        return _solved(
            minres(
                self.hessian,
                -self.gradient_N,
                tol=self.tol,
                max_matvecs=self.max_matvecs,
                stop=self.stop,
            )
        )

    def newton_npc(self) -> Step:
        """MINRES that ends at negative curvature and steps along it, downhill, for 1/‖H‖."""
        solution = minres(
            self.hessian,
            -self.gradient_N,
            tol=self.tol,
            max_matvecs=self.max_matvecs,
            stop_at_negative_curvature=True,
            stop=self.stop,
        )
        if solution.negative_direction_N is None or solution.status != "negative-curvature":
            return _solved(solution)
        d_N = solution.negative_direction_N
        slope = float(self.ranks.dot(d_N, self.gradient_N))
        return Step(
            d_N * (-1.0 if slope > 0 else 1.0) / self.found.norm,
            "negative-curvature",
            solution.residual,
        )

    def saddle_free(self) -> Step:
        """−|H|⁻¹g on the computed eigenvectors, a gradient step on the rest.

        Source: Dauphin et al., NeurIPS 2014.
        """
        found, g_N, ranks = self.found, self.gradient_N, self.ranks
        vectors_KN = _orthonormal(found, ranks)
        products_KN = torch.stack([self.hessian.matvec(v_N) for v_N in vectors_KN])
        small_KK = ranks.inner(vectors_KN, products_KN).cpu().double()
        theta_K, rotation_KK = torch.linalg.eigh(0.5 * (small_KK + small_KK.T))
        eigen_KN = rotation_KK.T.to(vectors_KN) @ vectors_KN
        least = self.damping * found.norm
        sizes_K = theta_K.abs().clamp_min(max(least, torch.finfo(torch.float64).tiny)).to(g_N)
        along_K = ranks.over_entries(eigen_KN @ g_N)
        rest_N = g_N - eigen_KN.T @ along_K
        rest = float(ranks.dot(rest_N, rest_N))
        delta_N = -(eigen_KN.T @ (along_K / sizes_K))
        if rest > 0 and len(theta_K) < self.objective.n:
            bend = abs(float(ranks.dot(rest_N, self.hessian.matvec(rest_N)))) / rest
            # No eigenvalue of the rest is larger than the smallest one at the ends that was computed.
            delta_N = delta_N - rest_N / max(bend, float(sizes_K.min()), least)
        return Step(delta_N, f"{len(theta_K)} eigenpairs")

    def gauss_newton(self) -> Step:
        """−(G + δI)⁻¹g by conjugate gradients."""
        matrix = GaussNewton(self.objective, memory=self.memory)
        solution = conjugate_gradients(
            matrix,
            -self.gradient_N,
            damping=self.damping * self.found.norm,
            tol=self.tol,
            max_matvecs=self.max_matvecs,
            stop=self.stop,
        )
        return _solved(solution)

    def lbfgs(self) -> Step:
        """The quasi-Newton step after a few line-searched steps from θ, whose changes are the history.

        Source: Nocedal, Math. Comp. 35 (1980), two-loop recursion.
        """
        objective, ranks = self.objective, self.ranks
        offset_N, g_N = torch.zeros_like(self.gradient_N), self.gradient_N
        value = objective.loss
        history: list[tuple[Tensor, Tensor]] = []
        radius = 0.0
        for _ in range(self.history):
            if self.stop():
                break
            direction_N = _two_loop(g_N, history, ranks)
            if not history:
                direction_N = direction_N / max(1.0, float(ranks.norm(g_N)))
            moved = self._search(offset_N, direction_N, value, float(ranks.dot(g_N, direction_N)))
            if moved is None:
                break
            next_N, value = moved
            with objective.moved(next_N), self.hessian.kernels.active():
                next_g_N = objective.gradient(self.hessian.micro_batch)
            s_N, y_N = next_N - offset_N, next_g_N - g_N
            # Pairs without positive curvature would make the model indefinite, nearly orthogonal ones huge.
            lengths = float(ranks.norm(s_N)) * float(ranks.norm(y_N))
            if float(ranks.dot(s_N, y_N)) > 1e-6 * lengths:
                history.append((s_N, y_N))
            radius = max(radius, float(ranks.norm(next_N)))
            offset_N, g_N = next_N, next_g_N
        step_N = _two_loop(self.gradient_N, history, ranks)
        length = float(ranks.norm(step_N))
        told = f"{len(history)} pairs of history"
        if history and length > _TRUST * radius:
            # The history knows nothing of the surface farther away than it was gathered.
            return Step(step_N * (_TRUST * radius / length), f"{told}, bounded by their radius")
        return Step(step_N, told)

    def _search(
        self, offset_N: Tensor, direction_N: Tensor, value: float, slope: float
    ) -> tuple[Tensor, float] | None:
        """Backtracking until the loss falls as Armijo's rule asks."""
        t = 1.0
        for _ in range(20):
            next_N = offset_N + t * direction_N
            with self.objective.moved(next_N), self.hessian.kernels.active():
                reached = self.objective.value(self.hessian.micro_batch)
            if reached <= value + 1e-4 * t * slope:
                return next_N, reached
            t /= 2
        return None


def ascent_in_negative_curvature(
    found: LanczosResult, gradient_N: Tensor, delta_N: Tensor, ranks: Ranks = ALONE
) -> float | None:
    """Σ (v·Δ)(v·g) over eigenvectors of negative curvature: above zero the step climbs towards the saddle.

    Returns:
        None where no negative eigenvalue is known.
    """
    floor = 1e-6 * found.norm
    chosen = [i for i, v in enumerate(found.values_K) if v < -floor]
    if not chosen:
        return None
    both_2N = torch.stack([delta_N, gradient_N])
    return float(ranks.inner(found.vectors_KN[chosen], both_2N).prod(1).sum())


def save_step(objective: Objective, delta_N: Tensor, path: str, metadata: dict[str, str]) -> None:
    """Write the weights θ + Δ as safetensors, under a temporary name that is renamed at the end.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    from pathlib import Path

    from safetensors.torch import save

    from curvcli.errors import OutputError
    from curvcli.files import write_whole

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    with objective.moved(delta_N):
        for name, tensor in objective.model.state_dict().items():
            # Tied tensors are stored once, as safetensors asks.
            if tensor.numel() and tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    try:
        write_whole(Path(path), save(tensors, metadata))
    except OSError as error:
        raise OutputError(
            f"{path!r} cannot be written: {error.strerror}", "name another file by --save"
        ) from None


def _solved(solution: Solution) -> Step:
    return Step(solution.x_N, solution.status, solution.residual)


def _orthonormal(found: LanczosResult, ranks: Ranks) -> Tensor:
    """The Ritz vectors as an orthonormal set: both ends may share some in a small space."""
    basis_KN, kept = torch.empty_like(double(found.vectors_KN)), 0
    for v_N in found.vectors_KN:
        rest_N = double(v_N).clone()
        for _ in range(2 if kept else 0):  # once more for what rounding left of the others
            inside_K = ranks.over_entries(basis_KN[:kept] @ rest_N)
            rest_N -= basis_KN[:kept].T @ inside_K
        length = float(ranks.norm(rest_N))
        if length > 1e-6:
            basis_KN[kept] = rest_N / length
            kept += 1
    return basis_KN[:kept].to(found.vectors_KN)


def _two_loop(g_N: Tensor, history: list[tuple[Tensor, Tensor]], ranks: Ranks) -> Tensor:
    q_N = g_N.clone()
    factors = []
    for s_N, y_N in reversed(history):
        rho = 1 / float(ranks.dot(s_N, y_N))
        factor = rho * float(ranks.dot(s_N, q_N))
        q_N.sub_(y_N, alpha=factor)
        factors.append((rho, factor))
    if history:
        s_N, y_N = history[-1]
        q_N.mul_(float(ranks.dot(s_N, y_N)) / float(ranks.dot(y_N, y_N)))
    for (s_N, y_N), (rho, factor) in zip(history, reversed(factors), strict=True):
        q_N.add_(s_N, alpha=factor - rho * float(ranks.dot(y_N, q_N)))
    q_N.neg_()
    return q_N
