"""The generalised Gauss-Newton matrix: the Hessian without the curvature of the network itself.

G = Σ_i J_iᵀ (∂²ℓ_i/∂z²) J_i / W with J_i the Jacobian of the outputs z in the parameters (Schraudolph, Neural
Computation 14, 2002). Positive semi-definite for losses that are convex in the outputs. A product costs one
forward and one backward derivative on kept graphs.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from curvcli.errors import LossError
from curvcli.objective import Batch, SplitLoss
from curvcli.operators.curvature import Curvature
from curvcli.operators.kernels import missing_derivatives


class OutputGraph(NamedTuple):
    """Graphs of one piece: outputs, and their transposed Jacobian product as a function of its seed."""

    outputs: Tensor
    seed: Tensor
    """u, shaped like the outputs."""
    pulled: list[Tensor]
    """Jᵀu for each parameter that the outputs reach; its derivative in u is J."""
    positions: list[int]
    inner: Tensor
    """∂ℓ/∂z as a function of z, a leaf."""
    leaf: Tensor


class GaussNewton(Curvature[OutputGraph]):
    """G(θ) as a linear map; see `Curvature` for the arguments.

    Raises:
        LossError: the objective does not separate outputs and loss (``--objective``, ``--loss output``).
    """

    def _graph(self, batch: Batch) -> OutputGraph:
        objective = self.objective
        if not hasattr(objective.terms, "of_outputs"):
            raise LossError(
                "the Gauss-Newton matrix needs the model's outputs and the loss apart",
                "use a named --loss or --loss module:function of (outputs, targets)",
            )
        loss = cast(SplitLoss, objective.terms)
        with torch.enable_grad(), self.kernels.active():
            with objective.untouched_buffers():
                outputs = loss.outputs(objective.model, batch.data)
            seed = torch.zeros_like(outputs, requires_grad=True)
            if not outputs.requires_grad:
                return OutputGraph(outputs, seed, [], [], outputs, outputs)
            pulled = torch.autograd.grad(
                outputs, objective.parameters, seed, create_graph=True, allow_unused=True
            )
            leaf = outputs.detach().requires_grad_()
            total, _ = loss.of_outputs(leaf, batch.data)
            (inner,) = torch.autograd.grad(total / objective.weight, leaf, create_graph=True)
        positions = [i for i, p in enumerate(pulled) if p is not None and p.requires_grad]
        return OutputGraph(outputs, seed, [pulled[i] for i in positions], positions, inner, leaf)

    def _multiply(self, graph: OutputGraph, views: list[Tensor], retain: bool) -> Tensor:
        if not graph.pulled or not graph.inner.requires_grad:
            return torch.zeros(self.n, dtype=self.dtype, device=self.device)
        with self.kernels.active():
            (pushed,) = torch.autograd.grad(
                graph.pulled, graph.seed, [views[i] for i in graph.positions], retain_graph=True
            )
            (curved,) = torch.autograd.grad(graph.inner, graph.leaf, pushed, retain_graph=True)
            parts = torch.autograd.grad(
                graph.outputs,
                self.objective.parameters,
                curved,
                retain_graph=retain,
                allow_unused=True,
                materialize_grads=True,
            )
        return self.objective.flatten(parts)

    def _missing(self, graph: OutputGraph) -> str | None:
        return missing_derivatives([*graph.pulled, graph.inner])

    def _without_derivative(self) -> None:
        raise LossError(
            "an operation of the model has no derivative that Gauss-Newton products need",
            "use the Hessian, whose products fall back to finite differences",
        )

    def _difference_part(self, batch: Batch, vectors_KN: Tensor) -> Tensor:
        raise NotImplementedError("Gauss-Newton products have no finite-difference form")
