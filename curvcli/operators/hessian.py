"""The Hessian of an objective, multiplied with by reverse-over-reverse differentiation.

Hv = ∇(∇Lᵀv) (Pearlmutter, Neural Computation 6, 1994). A gradient costs 3 matmul-units a layer; a product
on a first-order graph that is kept alive costs 6, one that rebuilds the graph 9 and more.

Shapes: ``N`` parameters, ``K`` vectors at once, ``B`` parts of the data.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvcli.device import free_memory, used_memory
from curvcli.errors import MemoryLimitError, NonFiniteError
from curvcli.objective import Batch, Objective, flatten
from curvcli.operators.kernels import Kernels, lacks_second_derivative, missing_derivatives
from curvcli.operators.memory import MemoryMeter, Need, Plan, human, plan

Strategy = Literal["auto", "keep", "rebuild", "finite-difference"]

# Parts a single batch is split into for the spread over batches.
PARTS = 8
# Samples of the smallest piece on which a second derivative is tried.
_PROBE = 2


class _Graph(NamedTuple):
    """First-order graph of one piece: the gradients that depend on the parameters, and where they go."""

    gradients: list[Tensor]
    positions: list[int]


class Part(NamedTuple):
    """What one part of the data contributes to products with K vectors."""

    weight: float
    """Its loss terms."""
    products_KN: Tensor
    """Its contribution to H V; the contributions of all parts add up to H V."""


class Hessian:
    """∇²L(θ) as a linear map.

    Args:
        objective: L.
        memory: bytes the process may use in all; None: what is free now.
        wanted: eigenpairs that will be asked for, to divide the memory between graph and basis.
        preferred_capacity: vectors a Krylov basis would like to hold.
        strategy: ``auto`` keeps the graph where it fits; the others force one way.

    Raises:
        MemoryLimitError: it does not fit, even in the smallest pieces.
        NonFiniteError: the gradient contains NaN or Inf.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        memory: int | None = None,
        wanted: int = 13,
        preferred_capacity: int = 200,
        strategy: Strategy = "auto",
    ) -> None:
        self.objective = objective
        self.n, self.dtype, self.device = objective.n, objective.dtype, objective.device
        self.kernels = Kernels()
        self.finite_differences = strategy == "finite-difference"
        self._graphs: list[_Graph] | None = None
        if not self.finite_differences:
            self._find_kernels()
        self.plan = self._make_plan(memory, wanted, preferred_capacity)
        if strategy in ("keep", "rebuild"):
            self.plan = Plan(strategy == "keep", self.plan.micro_batch, self.plan.capacity)
        self._micro_batch = self.plan.micro_batch
        self.gradient = self._first_gradient()

    @property
    def strategy(self) -> Literal["keep", "rebuild", "finite-difference"]:
        """How products are computed."""
        if self.finite_differences:
            return "finite-difference"
        return "keep" if self.plan.keep_graph else "rebuild"

    @property
    def micro_batch(self) -> int | None:
        """Samples differentiated at a time; None: whole batches."""
        return self._micro_batch

    def matvec(self, v_N: Tensor) -> Tensor:
        """H v, shape (n,)."""
        self.objective.cost.matvecs += 1
        while True:
            try:
                return self._matvec(v_N)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._give_way(error)

    def parts(self, vectors_KN: Tensor) -> Iterator[Part]:
        """Products with K vectors, part by part: the batches, or pieces of a single one."""
        self.objective.cost.matvecs += len(vectors_KN)
        for batch in self._parts():
            while True:
                try:
                    yield self._part(batch, vectors_KN)
                    break
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    self._give_way(error)

    def difference_product(self, v_N: Tensor, length: float | None = None) -> Tensor:
        """H v by central differences of the gradient over ± ``length`` in the direction of v."""
        objective = self.objective
        norm = float(torch.linalg.vector_norm(v_N))
        if norm == 0.0:
            return torch.zeros_like(v_N)
        h = (length or self._difference_length()) / norm
        sides = []
        for sign in (1.0, -1.0):
            with objective.moved(sign * h * v_N), self.kernels.active():
                sides.append(objective.gradient(self._micro_batch))
        return (sides[0] - sides[1]) / (2 * h)

    def check(self, v_N: Tensor) -> float | None:
        """Relative difference between H v and its central finite difference, for one v.

        The step changes the loss by about 1e-4 of itself, according to the curvature: small against
        the kinks and higher derivatives of the surface, whatever the scale of loss and parameters.

        Returns:
            None where the dtype cannot resolve such a step.
        """
        exact_N = self.matvec(v_N)
        scale = float(torch.linalg.vector_norm(exact_N))
        curvature = scale / float(torch.linalg.vector_norm(v_N))
        length = self._difference_length()
        if curvature > 0 and self.objective.loss != 0:
            length = min(length, 1e-2 * math.sqrt(2 * abs(self.objective.loss) / curvature))
        theta = float(torch.linalg.vector_norm(self.objective.flat()))
        if length < 3 * torch.finfo(self.dtype).eps * theta:
            return None
        other_N = self.difference_product(v_N, length)
        scale = max(scale, float(torch.linalg.vector_norm(other_N)))
        return float(torch.linalg.vector_norm(exact_N - other_N)) / scale if scale else 0.0

    def release(self) -> None:
        """Drop the kept graph; the next product builds it again."""
        self._graphs = None

    def _difference_length(self) -> float:
        """eps^(1/3) in the scale of one parameter: balances rounding, eps/h, with truncation, h²."""
        eps = torch.finfo(self.dtype).eps
        theta = float(torch.linalg.vector_norm(self.objective.flat()))
        return float(eps ** (1 / 3)) * (1 + theta / math.sqrt(self.n))

    def _matvec(self, v_N: Tensor) -> Tensor:
        objective = self.objective
        if self.finite_differences:
            return self.difference_product(v_N)
        views = objective.views(v_N)
        if self.plan.keep_graph:
            if self._graphs is None:
                self._graphs = [self._graph(batch) for batch in objective.batches]
            out_N = self._sum([self._multiply(g, views, retain=True) for g in self._graphs])
        else:
            out_N = torch.zeros_like(v_N)
            for batch in objective.batches:
                for piece in batch.pieces(self._micro_batch or batch.size):
                    out_N += self._multiply(self._graph(piece), views, retain=False)
        if objective.weight_decay:
            out_N.add_(v_N, alpha=objective.weight_decay)
        return out_N

    def _sum(self, products: list[Tensor]) -> Tensor:
        out_N = products[0]
        for product_N in products[1:]:
            out_N.add_(product_N)
        return out_N

    def _part(self, batch: Batch, vectors_KN: Tensor) -> Part:
        objective = self.objective
        if self.finite_differences:
            return self._difference_part(batch, vectors_KN)
        out_KN = torch.zeros_like(vectors_KN)
        for piece in batch.pieces(self._micro_batch or batch.size):
            graph = self._graph(piece)
            for k, v_N in enumerate(vectors_KN):
                out_KN[k] += self._multiply(graph, objective.views(v_N), retain=True)
        return Part(self._terms_of(batch), out_KN)

    def _difference_part(self, batch: Batch, vectors_KN: Tensor) -> Part:
        whole = self.objective.batches
        weight = self._terms_of(batch)
        decay = self.objective.weight_decay
        try:
            self.objective.batches, self.objective.weight_decay = [batch], 0.0
            return Part(weight, torch.stack([self.difference_product(v_N) for v_N in vectors_KN]))
        finally:
            self.objective.batches, self.objective.weight_decay = whole, decay

    def _terms_of(self, batch: Batch) -> float:
        with torch.no_grad(), self.objective.untouched_buffers(), self.kernels.active():
            return self.objective.terms(self.objective.model, batch.data)[1]

    def _parts(self) -> Sequence[Batch]:
        objective = self.objective
        if len(objective.batches) > 1 or not objective.splittable:
            return objective.batches
        (batch,) = objective.batches
        return list(batch.pieces(max(1, math.ceil(batch.size / PARTS))))

    def _graph(self, batch: Batch) -> _Graph:
        with torch.enable_grad(), self.kernels.active():
            total = self.objective.sum_of(batch)
            if not total.requires_grad:
                return _Graph([], [])
            gradients = torch.autograd.grad(
                total, self.objective.parameters, create_graph=True, allow_unused=True
            )
        # A gradient that is constant in θ (a linear loss) has no graph and no curvature.
        positions = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        return _Graph([gradients[i] for i in positions], positions)

    def _multiply(self, graph: _Graph, views: list[Tensor], retain: bool) -> Tensor:
        parameters = self.objective.parameters
        if not graph.gradients:
            return torch.zeros(self.n, dtype=self.dtype, device=self.device)
        with self.kernels.active():
            parts = torch.autograd.grad(
                graph.gradients,
                parameters,
                grad_outputs=[views[i] for i in graph.positions],
                retain_graph=retain,
                allow_unused=True,
                materialize_grads=True,
            )
        return flatten(parts)

    def _find_kernels(self) -> None:
        """Try a product on the smallest piece, switching kernels until the second derivative exists."""
        objective = self.objective
        ones_N = torch.ones(self.n, dtype=self.dtype, device=self.device)
        for batch in self._distinct_batches():
            piece = next(iter(batch.pieces(_PROBE)))
            while (reason := self._obstacle(piece, ones_N)) is not None:
                note = self.kernels.switch_for(reason)
                if note is None:
                    objective.notes.append(
                        "an operation has no second derivative, so products are central differences of "
                        "the gradient (less accurate)"
                    )
                    self.finite_differences = True
                    return
                objective.notes.append(note)

    def _obstacle(self, piece: Batch, v_N: Tensor) -> str | None:
        """Why this piece cannot be differentiated twice, or None."""
        try:
            graph = self._graph(piece)
            missing = missing_derivatives(graph.gradients)
            if missing is None:
                self._multiply(graph, self.objective.views(v_N), retain=False)
        except RuntimeError as error:
            if _out_of_memory(error) or not lacks_second_derivative(error):
                raise
            return str(error)
        return missing

    def _distinct_batches(self) -> list[Batch]:
        # An arbitrary objective may treat batches differently; a named loss does not.
        batches = self.objective.batches
        return list(batches[:1]) if all(b.splittable for b in batches) else list(batches[:4])

    def _make_plan(self, memory: int | None, wanted: int, preferred: int) -> Plan:
        objective = self.objective
        used = used_memory(self.device)
        available = free_memory(self.device) if memory is None else memory - used
        kept, peak = self._needs(max(objective.batches, key=lambda b: b.size))
        return plan(
            max(0, available),
            kept=kept,
            peak=peak,
            batch_sizes=[batch.size for batch in objective.batches],
            vector=self.n * torch.finfo(self.dtype).bits // 8,
            wanted=wanted,
            n=self.n,
            splittable=objective.splittable,
            preferred=preferred,
        )

    def _needs(self, batch: Batch) -> tuple[Need, Need]:
        """Bytes of a kept graph, and of the peak while it is built and multiplied with."""
        splittable = self.objective.splittable
        sizes = (_PROBE, 2 * _PROBE) if splittable else (batch.size,)
        pieces = [next(iter(batch.pieces(size))) for size in sizes]
        found = [self._measure(piece) for piece in pieces]
        grown = pieces[-1].size - pieces[0].size
        needs = []
        for first, last in zip(found[0], found[-1], strict=True):
            slope = (last - first) / grown if grown else last / pieces[-1].size
            slope = max(0.0, slope)
            needs.append(Need(max(0.0, first - slope * pieces[0].size), slope))
        return needs[0], needs[1]

    def _measure(self, piece: Batch) -> tuple[int, int]:
        """(bytes the graph of ``piece`` keeps, peak of building it and multiplying with it)."""
        views = self.objective.views(torch.ones(self.n, dtype=self.dtype, device=self.device))
        with MemoryMeter() as meter:
            if self.finite_differences:
                total = self.objective.sum_of(piece)
                torch.autograd.grad(total, self.objective.parameters, allow_unused=True)
                return 0, meter.peak
            graph = self._graph(piece)
            kept = meter.live
            self._multiply(graph, views, retain=True)
        return kept, meter.peak

    def _first_gradient(self) -> Tensor:
        while True:
            try:
                with self.kernels.active():
                    gradient_N = self.objective.gradient(self._micro_batch)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._give_way(error)
        if not bool(torch.isfinite(gradient_N).all()):
            bad = [
                name
                for name, part in zip(
                    self.objective.names, self.objective.views(gradient_N), strict=True
                )
                if not bool(torch.isfinite(part).all())
            ]
            raise NonFiniteError(
                f"the gradient contains NaN or Inf, first in {bad[0]!r}, although the loss is finite",
                "gradients overflow: try --dtype float64",
            )
        return gradient_N

    def _give_way(self, error: BaseException) -> None:
        """After running out of memory: smaller pieces, if there are any. Re-raises anything else."""
        if not _out_of_memory(error):
            raise error
        self._graphs = None
        largest = max(batch.size for batch in self.objective.batches)
        present = self._micro_batch or largest
        if not self.objective.splittable or (present == 1 and not self.plan.keep_graph):
            raise MemoryLimitError(
                f"out of memory with {present} samples at a time ({human(used_memory(self.device))} in use)",
                "restrict --params, ask for fewer eigenvalues, or use a larger machine",
            ) from None
        self._micro_batch = max(1, present // 2)
        self.plan = Plan(False, self._micro_batch, self.plan.capacity)
        self.objective.notes.append(
            f"ran out of memory: going on with {self._micro_batch} samples at a time"
        )


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(
            s in str(error)
            for s in ("not enough memory", "out of memory", "alloc_cpu", "bad_alloc")
        )
    )
