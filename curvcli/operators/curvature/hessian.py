"""The Hessian of an objective, multiplied with by reverse-over-reverse differentiation.

Hv = ∇(∇Lᵀv) (Pearlmutter, Neural Computation 6, 1994). A gradient costs 3 matmul-units a layer; a product
on a first-order graph that is kept alive costs 6, one that rebuilds the graph 9 and more.

Shapes: ``N`` parameters, ``K`` vectors at once.
"""

import math
import warnings
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from curvcli.machine.memory import out_of_memory
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective
from curvcli.operators.autodiff.kernels import missing_derivatives
from curvcli.operators.autodiff.pullback import pullback, pullbacks
from curvcli.operators.curvature.curvature import Curvature


class FirstOrderGraph(NamedTuple):
    """The gradients of one piece that depend on the parameters, and where they go."""

    gradients: list[Tensor]
    positions: list[int]
    constants: dict[int, Tensor]
    """The gradients that do not depend on the parameters, by position."""


class Hessian(Curvature[FirstOrderGraph]):
    """∇²L(θ) as a linear map; see `Curvature` for the arguments.

    Where an operation has no second derivative and no replacement, products are central differences of
    the gradient, with a note.

    That of a linear regression is 2/N XᵀX, here diag(1, 4):

    >>> from curvcli.loading.loss import loss_terms
    >>> from curvcli.objective.checks import make_objective
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> objective = make_objective(model, [Batch(((x,), {}, y), 2)], loss_terms("mse", {}))
    >>> Hessian(objective).matvec(torch.ones(2)).tolist()
    [1.0000, 4.0000]
    """

    def difference_product(self, v_N: Tensor, length: float | None = None) -> Tensor:
        """H v by central differences of the gradient over ± ``length`` in the direction of v."""
        return self._central_difference(v_N, length)

    def one_sided(self, v_N: Tensor, length: float) -> tuple[Tensor, Tensor]:
        """H v by differences of the gradient over ``length``: ahead in the direction of v, and behind."""
        h = length / float(self.ranks.norm(v_N))
        ahead_N, behind_N = (self._gradient_at(sign * h * v_N) for sign in (1.0, -1.0))
        here_N = self._gradient_at(torch.zeros_like(v_N))
        return (ahead_N - here_N) / h, (here_N - behind_N) / h

    def _central_difference(
        self, v_N: Tensor, length: float | None = None, objective: Objective | None = None
    ) -> Tensor:
        norm = float(self.ranks.norm(v_N))
        if norm == 0.0:
            return torch.zeros_like(v_N)
        h = (length or self._difference_length()) / norm
        ahead_N, behind_N = (self._gradient_at(sign * h * v_N, objective) for sign in (1.0, -1.0))
        return (ahead_N - behind_N) / (2 * h)

    def _gradient_at(self, step_N: Tensor, objective: Objective | None = None) -> Tensor:
        """∇L(θ + Δ)."""
        objective = self.objective if objective is None else objective
        with objective.moved(step_N), self.kernels.active():
            return objective.gradient(self.plan.micro_batch)

    def check(
        self, v_N: Tensor, exact_N: Tensor | None = None, length: float | None = None
    ) -> float | None:
        """Relative difference between H v and its central finite difference; see `Curvature.check`.

        The step changes the loss by about 1e-4 of itself, according to the curvature: small against
        the kinks and higher derivatives of the surface, whatever the scale of loss and parameters.
        """
        exact_N = self.matvec(v_N) if exact_N is None else exact_N
        scale = float(self.ranks.norm(exact_N))
        curvature = scale / float(self.ranks.norm(v_N))
        if length is None:
            # Products that are differences themselves are held against those of another length.
            length = self._difference_length() * (0.5 if self.finite_differences else 1.0)
            if curvature > 0 and self.objective.loss != 0:
                length = min(length, 1e-2 * math.sqrt(2 * abs(self.objective.loss) / curvature))
        theta = float(self.ranks.norm(self.objective.flat()))
        if length < 3 * torch.finfo(self.dtype).eps * theta:
            return None
        other_N = self._central_difference(v_N, length)
        scale = max(scale, float(self.ranks.norm(other_N)))
        return float(self.ranks.norm(exact_N - other_N)) / scale if scale else 0.0

    def _difference_length(self) -> float:
        """eps^(1/3) in the scale of one parameter: balances rounding, eps/h, with truncation, h²."""
        eps = torch.finfo(self.dtype).eps
        theta = float(self.ranks.norm(self.objective.flat()))
        return float(eps ** (1 / 3)) * (1 + theta / math.sqrt(self.n))

    def _difference_part(self, batch: Batch, vectors_KN: Tensor) -> Tensor:
        part = replace(self.objective, batches=[batch], weight_decay=0.0)
        return torch.stack([self._central_difference(v_N, objective=part) for v_N in vectors_KN])

    def _missing(self, graph: FirstOrderGraph) -> str | None:
        return missing_derivatives(graph.gradients)

    def _graph(self, batch: Batch) -> FirstOrderGraph:
        parameters = self.objective.parameters
        with torch.enable_grad(), self.kernels.building():
            total = self.objective.sum_of(batch)
            if not total.requires_grad:
                return FirstOrderGraph([], [], {})
            gradients = torch.autograd.grad(total, parameters, create_graph=True, allow_unused=True)
        # A gradient that is constant in θ (a linear loss) has no graph and no curvature.
        known = {i: g for i, g in enumerate(gradients) if g is not None}
        bent = {i: g for i, g in known.items() if g.requires_grad}
        constants = {i: g for i, g in known.items() if i not in bent}
        return FirstOrderGraph(list(bent.values()), list(bent), constants)

    def _gradient(self) -> Tensor:
        if self.finite_differences or not self.plan.keep_graph:
            return super()._gradient()
        # The first derivatives are what kept graphs begin with.
        objective = self.objective
        flat_N = torch.zeros(self.length, dtype=self.dtype, device=self.device)
        for graph in self.graphs():
            parts = graph.constants | dict(zip(graph.positions, graph.gradients, strict=True))
            flat_N += objective.flatten(
                [
                    parts[i].detach() if i in parts else torch.zeros_like(p)
                    for i, p in enumerate(objective.parameters)
                ]
            )
        flat_N = objective.ranks.over_data(flat_N)
        objective.cost.gradients += 1
        return (
            flat_N.add_(self.decay_product(objective.flat())) if objective.weight_decay else flat_N
        )

    def _multiply(self, graph: FirstOrderGraph, views: list[Tensor], retain: bool) -> Tensor:
        if not graph.gradients:
            return torch.zeros(self.length, dtype=self.dtype, device=self.device)
        with self.kernels.active():
            vectors = [views[i] for i in graph.positions]
            parts = pullback(
                graph.gradients, self.objective.parameters, vectors, retain_graph=retain
            )
        return self.objective.flatten(parts)

    def _multiply_together(self, graph: FirstOrderGraph, vectors_KN: Tensor) -> Tensor:
        if not graph.gradients:
            return torch.zeros_like(vectors_KN)
        parts = [torch.stack(views) for views in zip(*map(self.views, vectors_KN), strict=True)]
        try:
            # An operation without a batching rule is reported by a warning, and slow.
            with self.kernels.active(), warnings.catch_warnings():
                warnings.simplefilter("error")
                vectors = [parts[i] for i in graph.positions]
                products = pullbacks(graph.gradients, self.objective.parameters, vectors)
        except (RuntimeError, UserWarning) as error:
            if out_of_memory(error):
                raise
            return self._multiply_each(graph, vectors_KN)
        return torch.stack([self.objective.flatten(parts) for parts in zip(*products, strict=True)])
