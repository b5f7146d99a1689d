"""Matrices of the form Jᵀ C J, with J the Jacobian of the outputs z in the parameters and C the curvature in z.

The generalised Gauss-Newton matrix is the Hessian without the curvature of the network itself:
G = Σ_i J_iᵀ (∂²ℓ_i/∂z²) J_i / W (Schraudolph, Neural Computation 14, 2002). Positive semi-definite for losses that are
convex in the outputs. A product costs one forward and one backward derivative on kept graphs.

Shapes: ``K`` vectors at once, ``S`` samples, ``M`` outputs of each, ``R`` columns of a factor.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from curvcli.errors import LossError
from curvcli.linalg.operator import ROUNDING
from curvcli.linalg.vectors import double
from curvcli.objective.batch import Batch
from curvcli.objective.terms import SplitLoss
from curvcli.operators.autodiff.kernels import missing_derivatives
from curvcli.operators.autodiff.pullback import pullback
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.likelihoods import datum_of
from curvcli.operators.curvature.probing import ASYMMETRY, asymmetry


class OutputCurvature(NamedTuple):
    """C, a symmetric map of tensors shaped like the outputs; 1/W is in it."""

    product: Callable[[Tensor], Tensor] | None
    """u ↦ C u; None: C is zero."""
    graphs: list[Tensor]
    """What is differentiated in a product."""


class OutputGraph(NamedTuple):
    """Graphs of one piece: outputs, and their transposed Jacobian product as a function of its seed."""

    outputs: Tensor
    seed: Tensor
    """u, shaped like the outputs."""
    pulled: list[Tensor]
    """Jᵀu for each parameter that the outputs reach; its derivative in u is J."""
    positions: list[int]
    curvature: OutputCurvature


class GaussNewton(Curvature[OutputGraph]):
    """G(θ) as a linear map; see `Curvature` for the arguments.

    Raises:
        LossError: the objective does not separate outputs and loss (``--objective``, ``--loss output``).

    Of the loss (w₂ w₁)² at w = (1, 3) it is 2 JᵀJ with J = (w₂, w₁), whose first column is (18, 6):

    >>> from curvcli.loading.loss import loss_terms
    >>> from curvcli.objective.checks import make_objective
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    >>> for weight, value in zip(model.parameters(), (1.0, 3.0)):
    ...     _ = weight.data.fill_(value)
    >>> batch = Batch(((torch.ones(1, 1),), {}, torch.zeros(1, 1)), 1)
    >>> objective = make_objective(model, [batch], loss_terms("mse", {}))
    >>> GaussNewton(objective).matvec(torch.tensor([1.0, 0.0])).tolist()
    [18.0000, 6.0000]
    """

    def outputs_of(self, batch: Batch) -> Tensor:
        """z of one piece, with its graph."""
        loss, objective = self._loss(), self.objective
        with torch.enable_grad(), self.kernels.active(), objective.evaluation():
            return loss.outputs(objective.model, batch.data)

    def output_curvature(self, outputs: Tensor, batch: Batch) -> OutputCurvature:
        """C of one piece: ∂²(Σ ℓ)/∂z² / W.

        1 − p of a probability near one is nothing but rounding. Two identities of these losses do without it: that of
        one logit has a curvature σ(z) σ(−z) that is even in z, and so is taken at −|z|; that of several logits does not
        change when they all move alike, so that u may be taken relative to that of the largest one.
        """
        loss = self._loss()
        name = getattr(loss, "name", "")
        with torch.enable_grad():
            leaf = outputs.detach().clone()
            if name == "bce_with_logits":
                leaf = -leaf.abs()
            leaf.requires_grad_()
            total, _ = loss.of_outputs(leaf, batch.data)
            (inner,) = torch.autograd.grad(total / self.objective.weight, leaf, create_graph=True)
        if not inner.requires_grad:
            return OutputCurvature(None, [])

        largest: tuple[int, Tensor] | None = None
        if name in ("cross_entropy", "token_cross_entropy"):
            (axis,) = datum_of(loss, outputs, loss.targets(batch.data)).axes
            largest = axis, leaf.detach().argmax(axis, keepdim=True)

        def product(u: Tensor) -> Tensor:
            if largest is not None:
                u = u - u.gather(*largest)
            return pullback([inner], [leaf], [u])[0]

        return OutputCurvature(product, [inner])

    def factors(self, outputs: Tensor, batch: Batch) -> Tensor | None:
        """L with C = L Lᵀ for each sample (one row for all where samples are coupled), shape (S, M, R).

        Returns:
            None where C has negative eigenvalues.
        """
        rows = batch.size if self.objective.splittable else 1
        flat_SM = outputs.detach().reshape(rows, -1)
        product = self.output_curvature(outputs, batch).product
        if product is None:
            return flat_SM.new_zeros(rows, flat_SM.shape[1], 1)
        unit_SM = torch.zeros_like(flat_SM)
        columns = []
        for k in range(flat_SM.shape[1]):
            unit_SM[:, k] = 1.0
            columns.append(product(unit_SM.reshape(outputs.shape)).reshape(rows, -1))
            unit_SM[:, k] = 0.0
        values_SM, vectors_SMM = torch.linalg.eigh(double(torch.stack(columns, 2)))
        floor = ROUNDING * torch.finfo(self.dtype).eps * values_SM.abs().max()
        if bool((values_SM < -floor).any()):
            return None
        roots_SMM: Tensor = vectors_SMM * values_SM.clamp(min=0).sqrt()[:, None, :]
        return roots_SMM.to(self.device, self.dtype)

    def pushed(self, graph: OutputGraph, v_N: Tensor) -> Tensor:
        """J v, shaped like the outputs."""
        return self._push(graph, self.objective.views(v_N))

    def check(
        self, v_N: Tensor, exact_N: Tensor | None = None, length: float | None = None
    ) -> float | None:
        """Relative difference between vᵀ(A v) and the form (J v)ᵀ C (J v) with J v by central differences of z.

        See `Curvature.check`; None also where A v is zero.
        """
        objective = self.objective
        exact_N = self.matvec(v_N) if exact_N is None else exact_N
        form = float(self.ranks.dot(v_N, exact_N - self.decay_product(v_N)))
        theta, norm = float(self.ranks.norm(objective.flat())), float(self.ranks.norm(v_N))
        eps = torch.finfo(self.dtype).eps
        length = length or float(eps ** (1 / 3)) * (1 + theta / self.n**0.5)
        if form == 0 or length < 3 * eps * theta:
            return None
        h = length / norm
        total = 0.0
        with torch.no_grad():
            for piece in objective.pieces(self.plan.micro_batch):
                sides = []
                for sign in (1.0, -1.0):
                    with objective.moved(sign * h * v_N):
                        sides.append(self.outputs_of(piece).detach())
                moved = (sides[0] - sides[1]) / (2 * h)
                product = self.output_curvature(self.outputs_of(piece), piece).product
                if product is not None and not piece.idle:
                    total += float((moved * product(moved)).sum())
        (total,) = objective.ranks.totals(total)
        return abs(total - form) / max(abs(total), abs(form))

    def _loss(self) -> SplitLoss:
        terms = self.objective.terms
        if not hasattr(terms, "of_outputs"):
            raise LossError(
                "this matrix needs the model's outputs and the loss apart",
                "use a named --loss (cross_entropy, token_cross_entropy, mse, …) or --loss module:function of "
                "(outputs, targets)",
            )
        return cast(SplitLoss, terms)

    def _graph(self, batch: Batch) -> OutputGraph:
        objective = self.objective
        with torch.enable_grad(), self.kernels.building():
            outputs = self.outputs_of(batch)
            seed = torch.zeros_like(outputs, requires_grad=True)
            if not outputs.requires_grad:
                return OutputGraph(outputs, seed, [], [], OutputCurvature(None, []))
            pulled = pullback([outputs], objective.parameters, [seed], create_graph=True)
        positions = [i for i, p in enumerate(pulled) if p.requires_grad]
        curvature = self.output_curvature(outputs, batch)
        if (
            batch.idle and curvature.product is not None
        ):  # multiplied with by all, and counts for nothing
            curvature = OutputCurvature(torch.zeros_like, curvature.graphs)
        return OutputGraph(outputs, seed, [pulled[i] for i in positions], positions, curvature)

    def _push(self, graph: OutputGraph, views: list[Tensor]) -> Tensor:
        with self.kernels.active():
            return pullback(graph.pulled, [graph.seed], [views[i] for i in graph.positions])[0]

    def _multiply(self, graph: OutputGraph, views: list[Tensor], retain: bool) -> Tensor:
        if not graph.pulled or graph.curvature.product is None:
            return torch.zeros(self.length, dtype=self.dtype, device=self.device)
        with self.kernels.active():
            vector = graph.curvature.product(self._push(graph, views))
            parts = pullback(
                [graph.outputs], self.objective.parameters, [vector], retain_graph=retain
            )
        return self.objective.flatten(parts)

    def _missing(self, graph: OutputGraph) -> str | None:
        return missing_derivatives([*graph.pulled, *graph.curvature.graphs])

    def _is_rounding(self, piece: Batch) -> bool | None:
        """Also where only the loss' curvature at the outputs is rounding: saturated ones leave nothing else of it.

        That is symmetric by itself, so that products are right if those with JᵀJ are symmetric.
        """
        rounding = super()._is_rounding(piece)
        if rounding:
            return True
        graph = self._graph(piece)

        def without_loss(v_N: Tensor) -> Tensor:
            with self.kernels.active():
                vector = self._push(graph, self.views(v_N))
                parts = pullback(
                    [graph.outputs], self.objective.parameters, [vector], retain_graph=True
                )
            return self.objective.flatten(parts)

        tolerance = ASYMMETRY[self.dtype == torch.float64]
        if graph.pulled and asymmetry(without_loss, self.objective.flat(), self.ranks) <= tolerance:
            return True
        return rounding

    def _without_derivative(self) -> None:
        raise LossError(
            "an operation of the model has no derivative that Gauss-Newton products need",
            "use the Hessian, whose products fall back to finite differences",
        )

    def _difference_part(self, batch: Batch, vectors_KN: Tensor) -> Tensor:
        raise NotImplementedError("Gauss-Newton products have no finite-difference form")
