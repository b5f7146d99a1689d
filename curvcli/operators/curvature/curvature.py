"""What all curvature matrices of an objective share: memory, kernels, micro-batches, parts of the data.

Shapes: ``N`` parameters, ``K`` vectors at once, ``B`` parts of the data.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Generic, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from curvcli.errors import MemoryLimitError, NonFiniteError
from curvcli.machine.device import free_memory, used_memory
from curvcli.machine.meter import MemoryMeter
from curvcli.machine.plan import Need, Plan, human, out_of_memory, plan
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective
from curvcli.operators.autodiff.kernels import Kernels, lacks_second_derivative

Strategy = Literal["auto", "keep", "rebuild", "finite-difference"]

# Parts a single batch is split into for the spread over batches.
PARTS = 8
# Up to so many parameters several products at once are faster than one after the other.
_SMALL = 1_000_000
# More than a graph and a product with it keep, relative to all tensors that evaluating the loss makes: a kept graph has
# those of the forward and of the backward pass, a product makes about twice as many again.
_GENEROUS = 30
# Samples of the smallest piece on which a derivative is tried.
_PROBE = 2

G = TypeVar("G")
R = TypeVar("R")


class Part(NamedTuple):
    """What one part of the data contributes to products with K vectors."""

    weight: float
    """Its loss terms."""
    products_KN: Tensor
    """Its contribution to A V, without weight decay; the contributions of all parts add up."""


class Curvature(ABC, Generic[G]):
    """A symmetric n × n matrix of second-order information at θ, as a linear map.

    A kind of matrix says how a graph is built for a piece of data (`_graph`) and how one multiplies with
    it (`_multiply`); keeping, rebuilding and cutting graphs to fit the memory is done here.

    Args:
        objective: L.
        memory: bytes the process may use in all; None: what is free now.
        wanted: eigenpairs that will be asked for, to divide the memory between graph and basis.
        preferred_capacity: vectors a Krylov basis would like to hold.
        strategy: ``auto`` keeps the graph where it fits; the others force one way.
        like: an operator of the same model, whose kernels are used without looking for them again; nothing
            is planned or kept then.

    Raises:
        MemoryLimitError: it does not fit, even in the smallest pieces.
        NonFiniteError: the gradient contains NaN or Inf.
        LossError: this kind of matrix does not exist for the objective.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        memory: int | None = None,
        wanted: int = 13,
        preferred_capacity: int = 200,
        strategy: Strategy = "auto",
        like: "Curvature[G] | None" = None,
    ) -> None:
        self.objective = objective
        self.n, self.dtype, self.device = objective.n, objective.dtype, objective.device
        self.kernels: Kernels
        self.finite_differences: bool
        self._graphs: list[G] | None = None
        self._memory = memory
        if like is not None:
            self.kernels, self.finite_differences = like.kernels, like.finite_differences
            self.plan, self._micro_batch = Plan(False, like.micro_batch, 0), like.micro_batch
            return
        self.kernels = Kernels(objective.plain)
        self.finite_differences = strategy == "finite-difference"
        if not self.finite_differences:
            self._find_kernels()
        self.plan = self._make_plan(wanted, preferred_capacity)
        if strategy in ("keep", "rebuild"):
            self.plan = Plan(strategy == "keep", self.plan.micro_batch, self.plan.capacity)
        self._micro_batch = self.plan.micro_batch
        # Whatever is asked of the operator, a gradient that is not finite is an error now.
        _ = self.gradient

    def views(self, v_N: Tensor) -> list[Tensor]:
        """``v_N`` cut into the tensors that a graph is multiplied with."""
        return self.objective.views(v_N)

    @abstractmethod
    def _graph(self, batch: Batch) -> G:
        """What can be multiplied with repeatedly, for one piece of data."""

    @abstractmethod
    def _multiply(self, graph: G, views: list[Tensor], retain: bool) -> Tensor:
        """The piece's contribution to the product with the vector cut into ``views``, flat."""

    def _multiply_each(self, graph: G, vectors_KN: Tensor) -> Tensor:
        """Products with K vectors, one after the other."""
        return torch.stack(
            [self._multiply(graph, self.views(v_N), retain=True) for v_N in vectors_KN]
        )

    def _multiply_together(self, graph: G, vectors_KN: Tensor) -> Tensor:
        """Products with K vectors at once, where that can be done; takes K times the memory."""
        return self._multiply_each(graph, vectors_KN)

    @abstractmethod
    def _missing(self, graph: G) -> str | None:
        """Names of operations in the graph, if one of them lacks a derivative that products need."""

    @abstractmethod
    def _difference_part(self, batch: Batch, vectors_KN: Tensor) -> Tensor:
        """Contribution of a piece to K products where the derivative does not exist."""

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

    def parts(self, vectors_KN: Tensor, groups: int = PARTS, share: int = 1) -> Iterator[Part]:
        """Products with K vectors, part by part: the batches, or ``groups`` of samples of a single one.

        Args:
            vectors_KN: what to multiply with.
            groups: of a single batch.
            share: of a single batch, one sample in so many (all, where that leaves less than one for each group).
        """
        parts = self._parts(groups, share)
        seen = sum(batch.size for batch in parts) / self.objective.samples
        self.objective.cost.matvecs += math.ceil(len(vectors_KN) * seen)
        for index, batch in enumerate(parts):
            while True:
                try:
                    yield self._part(batch, vectors_KN, index)
                    break
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    self._give_way(error)

    def contribution(self, batch: Batch, vectors_KN: Tensor) -> Tensor:
        """What one batch or piece adds to K products, without weight decay, shape (K, n)."""
        return self._products(batch, vectors_KN)

    def decay_product(self, v_N: Tensor) -> Tensor:
        """What the weight decay adds to a product, a new tensor."""
        return self.objective.weight_decay * v_N

    @abstractmethod
    def check(
        self, v_N: Tensor, exact_N: Tensor | None = None, length: float | None = None
    ) -> float | None:
        """Relative error of one product as seen by central finite differences.

        Args:
            v_N: the vector.
            exact_N: A v, where it is known already.
            length: of the step, in the units of the weights; None: chosen by curvature and dtype.

        Returns:
            None where the dtype cannot resolve such a step.
        """

    def twin(self, objective: Objective) -> Self:
        """The same kind of matrix for another objective of the same model, in another dtype or on other data."""
        return type(self)(objective, like=self)

    def graphs(self) -> Iterator[G]:
        """The graph of each piece of the data: all are kept, or each is built when it is its turn."""
        if self.plan.keep_graph and self._graphs is None:
            self._graphs = [self._graph(batch) for batch in self.objective.batches]
        if self._graphs is not None:
            yield from self._graphs
            return
        for batch in self.objective.batches:
            for piece in batch.pieces(self._micro_batch or batch.size):
                yield self._graph(piece)

    def within_memory(self, compute: Callable[[], R]) -> R:
        """The value of ``compute``, tried again with smaller pieces where memory runs out."""
        while True:
            try:
                return compute()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._give_way(error)

    def room(self) -> int:
        """Bytes that may still be allocated."""
        if self._memory is None:
            return free_memory(self.device)
        return max(0, self._memory - used_memory(self.device))

    def part_gradients(self) -> Iterator[tuple[float, Tensor]]:
        """(loss terms, contribution to ∇L without weight decay) of each part of the data."""
        objective = self.objective
        objective.cost.gradients += 1
        for batch in self._parts():
            flat_N = torch.zeros(self.n, dtype=self.dtype, device=self.device)
            for piece in batch.pieces(self._micro_batch or batch.size):
                with self.kernels.active():
                    flat_N += objective.gradient_of(piece)
            yield self._terms_of(batch), flat_N

    def release(self) -> None:
        """Drop the kept graph; the next product builds it again."""
        self._graphs = None

    def _matvec(self, v_N: Tensor) -> Tensor:
        objective = self.objective
        views = self.views(v_N)
        if self.finite_differences:
            out_N = self._sum([self._difference_part(b, v_N[None])[0] for b in objective.batches])
        elif self.plan.keep_graph:
            if self._graphs is None:
                self._graphs = [self._graph(batch) for batch in objective.batches]
            out_N = self._sum([self._multiply(g, views, retain=True) for g in self._graphs])
        else:
            out_N = torch.zeros_like(v_N)
            for batch in objective.batches:
                for piece in batch.pieces(self._micro_batch or batch.size):
                    out_N += self._multiply(self._graph(piece), views, retain=False)
        if objective.weight_decay:
            out_N.add_(self.decay_product(v_N))
        return out_N

    def _sum(self, products: list[Tensor]) -> Tensor:
        out_N = products[0]
        for product_N in products[1:]:
            out_N.add_(product_N)
        return out_N

    def _part(self, batch: Batch, vectors_KN: Tensor, index: int | None = None) -> Part:
        """Products with one part; ``index`` is its number in `parts`."""
        return Part(self._terms_of(batch), self._products(batch, vectors_KN, index))

    def _products(self, batch: Batch, vectors_KN: Tensor, index: int | None = None) -> Tensor:
        objective = self.objective
        if self.finite_differences:
            return self._difference_part(batch, vectors_KN)
        if self._graphs is not None and index is not None and len(objective.batches) > 1:
            return self._multiply_each(self._graphs[index], vectors_KN)
        out_KN = torch.zeros_like(vectors_KN)
        for piece in batch.pieces(self._micro_batch or batch.size):
            graph = self._graph(piece)
            few = len(vectors_KN) * piece.size <= objective.samples and self.n <= _SMALL
            small = few and len(vectors_KN) > 1
            many = self._multiply_together if small else self._multiply_each
            out_KN += many(graph, vectors_KN)
        return out_KN

    def _terms_of(self, batch: Batch) -> float:
        objective = self.objective
        with torch.no_grad(), objective.untouched_buffers(), self.kernels.active():
            return sum(
                objective.terms(objective.model, piece.data)[1]
                for piece in batch.pieces(self._micro_batch or batch.size)
            )

    def _parts(self, groups: int = PARTS, share: int = 1) -> Sequence[Batch]:
        objective = self.objective
        if len(objective.batches) > 1 or not objective.splittable:
            return objective.batches
        (batch,) = objective.batches
        samples = math.ceil(batch.size / (groups * share))
        if groups * samples >= batch.size:
            return list(batch.pieces(math.ceil(batch.size / groups)))
        chosen = [i * batch.size // (groups * samples) for i in range(groups * samples)]
        # Each group takes samples from all over the batch.
        return [batch.take(chosen[g::groups]) for g in range(groups)]

    def _find_kernels(self) -> None:
        """Try a product on the smallest piece, switching kernels until the second derivative exists."""
        objective = self.objective
        ones_N = torch.ones(self.n, dtype=self.dtype, device=self.device)
        for batch in self._distinct_batches():
            piece = next(iter(batch.pieces(_PROBE)))
            while (reason := self._obstacle(piece, ones_N)) is not None:
                note = self.kernels.switch_for(reason)
                if note is None:
                    self._without_derivative()
                    return
                objective.notes.append(note)

    def _without_derivative(self) -> None:
        """What to do when no kernel has the derivative that products need."""
        self.objective.notes.append(
            "an operation has no second derivative, so products are central differences of "
            "the gradient (less accurate)"
        )
        self.finite_differences = True

    def _obstacle(self, piece: Batch, v_N: Tensor) -> str | None:
        """Why this piece cannot be differentiated twice, or None."""
        try:
            graph = self._graph(piece)
            missing = self._missing(graph)
            if missing is None:
                self._multiply(graph, self.views(v_N), retain=False)
        except RuntimeError as error:
            if out_of_memory(error) or not lacks_second_derivative(error):
                raise
            return str(error)
        return missing

    def _distinct_batches(self) -> list[Batch]:
        # An arbitrary objective may treat batches differently; a named loss does not.
        batches = self.objective.batches
        return list(batches[:1]) if all(b.splittable for b in batches) else list(batches[:4])

    def _make_plan(self, wanted: int, preferred: int) -> Plan:
        objective = self.objective
        room = self.room()
        best = min(self.n, preferred)

        def planned(needs: tuple[Need, Need]) -> Plan:
            return plan(
                room,
                kept=needs[0],
                peak=needs[1],
                batch_sizes=[batch.size for batch in objective.batches],
                vector=self.n * torch.finfo(self.dtype).bits // 8,
                wanted=wanted,
                n=self.n,
                splittable=objective.splittable,
                preferred=preferred,
            )

        largest = max(objective.batches, key=lambda b: b.size)
        # Where even a generous multiple of what evaluating the loss takes would fit, nothing need be measured.
        generous = Need(0.0, _GENEROUS * objective.evaluated_bytes / largest.size)
        if generous.of(objective.samples) + best * self.n * 8 < room:
            rough = planned((generous, generous))
            if rough.keep_graph and rough.capacity == best:
                return rough
        if not objective.splittable:
            return planned(_proportional(self._measure(largest), largest.size))
        small = next(iter(largest.pieces(_PROBE)))
        found = self._measure(small)
        # As if every byte grew with the samples: where even that fits, nothing more need be known.
        bound = _proportional(found, small.size)
        if bound[1].of(largest.size) + best * self.n * 8 < room:
            rough = planned(bound)
            if rough.keep_graph and rough.capacity == best:
                return rough
        larger = next(iter(largest.pieces(2 * _PROBE)))
        if larger.size == small.size:
            return planned(bound)
        needs = []
        for first, last in zip(found, self._measure(larger), strict=True):
            slope = max(0.0, (last - first) / (larger.size - small.size))
            needs.append(Need(max(0.0, first - slope * small.size), slope))
        return planned((needs[0], needs[1]))

    def _measure(self, piece: Batch) -> tuple[int, int]:
        """(bytes the graph of ``piece`` keeps, peak of building it and multiplying with it)."""
        views = self.views(torch.ones(self.n, dtype=self.dtype, device=self.device))
        with MemoryMeter() as meter:
            if self.finite_differences:
                total = self.objective.sum_of(piece)
                torch.autograd.grad(total, self.objective.parameters, allow_unused=True)
                return 0, meter.peak
            graph = self._graph(piece)
            kept = meter.live
            self._multiply(graph, views, retain=True)
        return kept, meter.peak

    @cached_property
    def gradient(self) -> Tensor:
        """∇L(θ), flat, shape (n,)."""
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
        if not out_of_memory(error):
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


def _proportional(found: tuple[int, int], samples: int) -> tuple[Need, Need]:
    """Needs that grow with the samples from nothing."""
    kept, peak = found
    return Need(0.0, kept / samples), Need(0.0, peak / samples)
