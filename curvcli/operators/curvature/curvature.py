"""What all curvature matrices of an objective share: products from graphs that are kept or built again.

Shapes: ``N`` parameters, ``K`` vectors at once, ``B`` parts of the data.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Generic, Literal, Self, TypeVar

import torch
from torch import Tensor

from curvcli.linalg.ranks import Ranks
from curvcli.machine.memory import retried, room
from curvcli.machine.plan import Plan
from curvcli.machine.replay import Replay, recorder
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective
from curvcli.operators.autodiff.finite import check_finite
from curvcli.operators.autodiff.kernels import Kernels
from curvcli.operators.curvature.parts import PARTS, Part, parts_of
from curvcli.operators.curvature.planning import make_plan, measured
from curvcli.operators.curvature.probing import (
    ASYMMETRY,
    asymmetry,
    find_kernels,
    gone_in_float64,
    twin_of,
)

Strategy = Literal["auto", "keep", "rebuild", "finite-difference"]

# Up to so many parameters several products at once are faster than one after the other.
_SMALL = 1_000_000

G = TypeVar("G")
R = TypeVar("R")


class Curvature(ABC, Generic[G]):
    """A symmetric n × n matrix of second-order information at θ, as a linear map.

    A kind of matrix says how a graph is built for a piece of data (`_graph`) and how one multiplies with
    it (`_multiply`). Which kernels are used says `probing`, what is kept and cut to fit the memory `planning`.

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
        self.kernels: Kernels
        self.n, self.dtype, self.device = objective.n, objective.dtype, objective.device
        self.length, self.offload = objective.length, objective.offload
        self.finite_differences = strategy == "finite-difference"
        self._graphs: list[G | None] | None = None
        self._replay = Replay(recorder(self.device), objective.notes.append)
        self._multiplied = False
        self._memory = memory
        if like is not None:
            self.kernels, self.finite_differences = like.kernels, like.finite_differences
            self.plan = Plan(False, like.micro_batch, 0)
            return
        self.kernels = Kernels(objective.plain, objective.lean)
        if not self.finite_differences:
            found, notes = find_kernels(
                self.kernels,
                objective.batches,
                self._probe,
                self._loss_of,
                ASYMMETRY[self.dtype.itemsize >= 8],
                self._is_rounding,
            )
            objective.notes.extend(notes)
            if not found:
                self._without_derivative()
        measure = partial(measured, self)
        self.plan = make_plan(objective, self.room(), measure, wanted, preferred_capacity)
        if strategy in ("keep", "rebuild"):
            self.plan = Plan(strategy == "keep", self.plan.micro_batch, self.plan.capacity)
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
    def ranks(self) -> Ranks:
        """The processes that share the data of its products."""
        return self.objective.ranks

    @property
    def micro_batch(self) -> int | None:
        """Samples differentiated at a time; None: whole batches."""
        return self.plan.micro_batch

    def matvec(self, v_N: Tensor) -> Tensor:
        """H v, shape (n,)."""
        self.objective.cost.matvecs += 1
        product_N = self._matvec(v_N)
        if not self._multiplied:
            self._multiplied = True  # an entry of the matrix that is NaN shows in any product
            check_finite(
                product_N, "the second derivative", self.objective.batches,
                lambda piece: self.contribution(piece, v_N[None]), self.ranks,
            )  # fmt: skip
        return product_N

    def parts(self, vectors_KN: Tensor, groups: int = PARTS, share: int = 1) -> Iterator[Part]:
        """Products with K vectors, part by part: the batches, or ``groups`` of samples of a single one.

        Args:
            vectors_KN: what to multiply with.
            groups: of a single batch.
            share: of a single batch, one sample in so many (all, where that leaves less than one for each group).
        """
        parts = parts_of(self.objective, groups, share)
        seen = sum(batch.size for batch in parts) / self.objective.samples
        self.objective.cost.matvecs += math.ceil(len(vectors_KN) * seen)
        for index, batch in enumerate(parts):
            yield self._part(batch, vectors_KN, index)

    def contribution(self, batch: Batch, vectors_KN: Tensor) -> Tensor:
        """What one batch or piece adds to K products, without weight decay, shape (K, n)."""
        return self._shared(self._products(batch, vectors_KN))

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
        """The graph of each piece of this process' data: all are kept, or each is built when it is its turn."""
        if self.plan.keep_graph:
            yield from (graph for graph in self._kept() if graph is not None)
            return
        for piece in self.objective.pieces(self.plan.micro_batch):
            yield self._graph(piece)

    def _kept(self) -> list[G | None]:
        """The graph of this process' part of each batch, built once."""
        if self._graphs is None:
            objective = self.objective
            numbered = enumerate(objective.batches)
            parts = [next(objective.pieces_of(batch, i, None), None) for i, batch in numbered]
            with self._replay.building():
                self._graphs = [None if part is None else self._graph(part) for part in parts]
        return self._graphs

    def within_memory(self, compute: Callable[[], R]) -> R:
        """The value of ``compute``, tried again with smaller pieces where memory runs out."""
        if self.ranks.parted or (self.finite_differences and self.ranks.size > 1):
            return compute()  # it holds exchanges, for which the others would wait
        return retried(compute, self._give_way)

    def room(self) -> int:
        """Bytes that may still be allocated."""
        return room(self.device, self._memory)

    def release(self) -> None:
        """Drop the kept graph; the next product builds it again."""
        self._replay.forget()
        self._graphs = None

    def _shared(self, own: Tensor) -> Tensor:
        """The sum over all processes; differences are of gradients, which are such sums already."""
        return own if self.finite_differences else self.ranks.over_data(own)

    def _matvec(self, v_N: Tensor) -> Tensor:
        out_N = self._shared(self.within_memory(partial(self._own_product, v_N)))
        if self.objective.weight_decay:
            out_N.add_(self.decay_product(v_N))
        return out_N

    def _own_product(self, v_N: Tensor) -> Tensor:
        """What this process' data contribute."""
        if self.finite_differences:
            batches = self.objective.batches
            return torch.stack([self._difference_part(b, v_N[None])[0] for b in batches]).sum(0)
        compute = self._product_on_graphs
        return self._replay(compute, v_N) if self.plan.keep_graph else compute(v_N)

    def _product_on_graphs(self, v_N: Tensor) -> Tensor:
        views, out_N = self.views(v_N), None
        for graph in self.graphs():
            product_N = self._multiply(graph, views, retain=self.plan.keep_graph)
            out_N = product_N if out_N is None else out_N.add_(product_N)
        return torch.zeros_like(v_N) if out_N is None else out_N

    def _part(self, batch: Batch, vectors_KN: Tensor, index: int) -> Part:
        own_KN = self.within_memory(partial(self._products, batch, vectors_KN, index))
        return Part(self.terms_of(batch, index), self._shared(own_KN))

    def _products(self, batch: Batch, vectors_KN: Tensor, index: int | None = None) -> Tensor:
        """What this process' part of a batch contributes to K products."""
        objective = self.objective
        if self.finite_differences:
            return self._difference_part(batch, vectors_KN)
        if self._graphs is not None and index is not None and len(objective.batches) > 1:
            kept = self._graphs[index]
            if kept is None:
                return torch.zeros_like(vectors_KN)
            return self._multiply_each(kept, vectors_KN)
        out_KN = torch.zeros_like(vectors_KN)
        for piece in objective.pieces_of(batch, index or 0, self.plan.micro_batch):
            graph = self._graph(piece)
            few = len(vectors_KN) * piece.size <= objective.samples and self.n <= _SMALL
            if few and len(vectors_KN) > 1:
                out_KN += self._multiply_together(graph, vectors_KN)
                continue
            for i, v_N in enumerate(vectors_KN):
                more = i + 1 < len(vectors_KN)
                out_KN[i] += self._multiply(graph, self.views(v_N), retain=more)
        return out_KN

    def terms_of(self, batch: Batch, index: int) -> float:
        """Loss terms of the part of that number."""
        objective = self.objective
        pieces = objective.pieces_of(batch, index, self.plan.micro_batch)
        with torch.no_grad(), objective.evaluation(), self.kernels.active():
            own = sum(
                objective.terms(objective.model, piece.data)[1] * (not piece.idle)
                for piece in pieces
            )
        return objective.ranks.totals(own)[0]

    def _probe(self, piece: Batch) -> str | float:
        """Names of operations whose derivative is missing, or the `asymmetry` of the matrix of a piece."""
        graph = self._graph(piece)
        return self._missing(graph) or asymmetry(
            lambda v_N: self._multiply(graph, self.views(v_N), retain=True),
            self.objective.flat(),
            self.ranks,
        )

    def _loss_of(self, piece: Batch) -> float:
        """The loss of a piece, per loss term."""
        with torch.no_grad(), self.objective.evaluation(), self.kernels.active():
            total, terms = self.objective.terms(self.objective.model, piece.data)
        return float(total.detach()) / terms if terms else 0.0

    def _is_rounding(self, piece: Batch) -> bool | None:
        """Whether the matrix of a piece is symmetric in float64; None where that cannot be told."""
        wide = twin_of(self, piece)
        if wide is None:
            return None
        found = wide._probe(wide.objective.batches[0])
        return None if isinstance(found, str) else gone_in_float64(found, wide.objective.loss)

    def _without_derivative(self) -> None:
        """What to do when no kernel has the derivative that products need."""
        self.objective.notes.append(
            "products are central differences of the gradient (less accurate)"
        )
        self.finite_differences = True

    @cached_property
    def gradient(self) -> Tensor:
        """∇L(θ), flat, shape (n,)."""
        gradient_N = self.within_memory(self._gradient)
        check_finite(
            gradient_N,
            "the gradient",
            self.objective.batches,
            self.objective.gradient_of,
            self.ranks,
        )
        return gradient_N

    def _gradient(self) -> Tensor:
        with self.kernels.active():
            return self.objective.gradient(self.plan.micro_batch)

    def _give_way(self) -> None:
        """After running out of memory: smaller pieces, if there are any."""
        self.release()
        largest = self.ranks.largest_share(max(batch.size for batch in self.objective.batches))
        self.plan = self.plan.smaller(largest, self.objective.splittable)
        self.objective.notes.append(
            f"ran out of memory: going on with {self.plan.micro_batch} samples at a time"
        )
