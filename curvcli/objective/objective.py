"""The function whose surface is inspected: L(θ) over frozen batches.

L(θ) = (Σ_b Σ_i ℓ_bi) / W + (wd/2) ‖θ‖², where W counts the *loss terms*, so that the same data split into
other batches gives the same L, gradient and Hessian.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from curvcli.errors import DataError, LossError, NonFiniteError, some
from curvcli.machine.device import used_memory
from curvcli.machine.meter import MemoryMeter
from curvcli.objective.batch import Batch
from curvcli.objective.faults import random_modules, why_not_finite
from curvcli.objective.lookups import Lookups, uses
from curvcli.objective.network import (
    check_weights,
    choose_parameters,
    set_mode,
    untouched_buffers,
    uses_batch_statistics,
)

# Samples of a piece whose bytes are counted.
_MEASURED = 2
# Untouched entries below this share of all are not worth being left out.
WORTHWHILE = 0.05

LossTerms = Callable[[nn.Module, Any], tuple[Tensor, float]]
"""(model, batch data) -> (sum of the loss terms, a scalar tensor; how many terms that are)."""


class SplitLoss(Protocol):
    """A loss that is known as a function of the model's outputs, as Gauss-Newton and Fisher need it."""

    def __call__(self, model: nn.Module, data: Any) -> tuple[Tensor, float]:
        """(sum of the loss terms, how many)."""

    def outputs(self, model: nn.Module, data: Any) -> Tensor:
        """The model's outputs."""

    def of_outputs(self, outputs: Tensor, data: Any) -> tuple[Tensor, float]:
        """(sum of the loss terms, how many) for these outputs."""


@dataclass
class Cost:
    """Work done so far."""

    matvecs: int = 0
    """Products over all batches."""
    gradients: int = 0
    """Gradients over all batches."""


@dataclass
class Objective:
    """L(θ), its gradient, and the bookkeeping around them.

    Args:
        model: on its device, in its dtype; its parameters are θ. The mode (train or eval) is set here.
        batches: what the mean runs over.
        terms: the loss, see `LossTerms`.
        select: globs over parameter names; the others are held fixed. Empty: all that are trainable.
        weight_decay: wd of the quadratic term, over the selected parameters.
        train_mode: batch statistics instead of running ones. Dropout stays off, so that L is a function.
        accept_nonfinite: NaN and Inf in weights, data and loss are no error, for those who look for them.
        memory: bytes that the process may use in all; None: as many as there are.

    Raises:
        ModelError: no parameter is left.
        DataError: there are no batches.
        LossError: the loss differs between two calls, or does not depend on the parameters.
        NonFiniteError: weights, data or loss contain NaN or Inf.
    """

    model: nn.Module
    batches: Sequence[Batch]
    terms: LossTerms
    select: Sequence[str] = ()
    weight_decay: float = 0.0
    train_mode: bool = False
    accept_nonfinite: bool = False
    memory: int | None = None
    notes: list[str] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        if not self.batches:
            raise DataError(
                "there are no batches: the data is empty", "pass data with at least one sample"
            )
        self.notes.extend(set_mode(self.model, self.train_mode))
        self.names, self.parameters, notes = choose_parameters(self.model, self.select)
        self.notes.extend(notes)
        self.rows: dict[int, Tensor] = {}
        """Of parameters with untouched rows, by position: the rows that vectors have, ascending."""
        self.n = sum(p.numel() for p in self.parameters)
        self.untouched = 0
        self.dtype = self.parameters[0].dtype
        self.device = self.parameters[0].device
        if not self.accept_nonfinite:
            check_weights(self.model)
        self.loss, self.weight = self._check_loss()

    evaluated_bytes: int = field(init=False)
    """Of all tensors that the loss of the largest batch made on its way, not counted again after they were freed."""
    n: int = field(init=False)
    """Length of the vectors: all entries of the parameters but the untouched ones."""
    untouched: int = field(init=False)
    """Entries of embeddings that no sample looks up, where ∇L and H are exactly zero; vectors leave them out."""

    @property
    def samples(self) -> int:
        """Samples in all batches."""
        return sum(batch.size for batch in self.batches)

    @property
    def splittable(self) -> bool:
        """Whether a batch may be cut into pieces without changing L."""
        return all(batch.splittable for batch in self.batches) and not self.couples_samples

    @property
    def couples_samples(self) -> bool:
        """Whether a sample's loss depends on the others in its batch (batch statistics)."""
        return uses_batch_statistics(self.model)

    def sum_of(self, batch: Batch) -> Tensor:
        """This batch's part of L without weight decay, Σ_i ℓ_i / W, with its graph."""
        with self.untouched_buffers():
            total, _ = self.terms(self.model, batch.data)
        return total / self.weight

    def value(self, samples: int | None = None) -> float:
        """L(θ) at the present parameters, from micro-batches of ``samples``."""
        with torch.no_grad():
            total = sum(
                float(self.sum_of(piece))
                for batch in self.batches
                for piece in batch.pieces(samples or batch.size)
            )
        return total + self._decay()

    def gradient(self, samples: int | None = None) -> Tensor:
        """∇L(θ), flat, shape (n,), from micro-batches of ``samples``."""
        flat_N = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        for batch in self.batches:
            for piece in batch.pieces(samples or batch.size):
                flat_N += self.gradient_of(piece)
        self.cost.gradients += 1
        if self.weight_decay:
            flat_N += self.weight_decay * self.flat()
        return flat_N

    def gradient_of(self, batch: Batch) -> Tensor:
        """This batch's part of ∇L without weight decay, flat, shape (n,)."""
        total = self.sum_of(batch)
        if not total.requires_grad:
            return torch.zeros(self.n, dtype=self.dtype, device=self.device)
        return self.flatten(
            torch.autograd.grad(total, self.parameters, allow_unused=True, materialize_grads=True)
        )

    def flat(self) -> Tensor:
        """θ as one vector of shape (n,), a copy."""
        return self.flatten([p.detach() for p in self.parameters])

    def flatten(self, parts: Sequence[Tensor], positions: Sequence[int] | None = None) -> Tensor:
        """Tensors with the shapes of the parameters as one vector of shape (n,).

        With ``positions`` the tensors and the vector are those of these parameters only, in that order. Tensors may
        be without the untouched rows.
        """
        where = range(len(self.parameters)) if positions is None else positions
        return torch.cat(
            [
                (part[self.rows[i]] if len(part) > len(self.rows[i]) else part).reshape(-1)
                if i in self.rows
                else part.reshape(-1)
                for i, part in zip(where, parts, strict=True)
            ]
        )

    def views(
        self, v_N: Tensor, positions: Sequence[int] | None = None, whole: bool = True
    ) -> list[Tensor]:
        """``v_N`` cut into tensors with the shapes of the parameters: views, or copies with untouched rows zero.

        With ``positions`` the vector and the tensors are those of these parameters only, in that order. If not
        ``whole``, all are views, without the untouched rows.
        """
        where = range(len(self.parameters)) if positions is None else positions
        sizes = self.sizes()
        out = []
        for i, part in zip(where, v_N.split([sizes[i] for i in where]), strict=True):
            p = self.parameters[i]
            if i in self.rows:
                rows_R = self.rows[i]
                known = part.view(len(rows_R), *p.shape[1:])
                out.append(
                    torch.zeros_like(p, requires_grad=False).index_copy_(0, rows_R, known)
                    if whole
                    else known
                )
            else:
                out.append(part.view_as(p))
        return out

    @property
    def dimension(self) -> int:
        """Number of parameters, untouched ones included: rows of the whole Hessian."""
        return self.n + self.untouched

    def share_vectors(self, other: "Objective") -> None:
        """Take the same entries into vectors as ``other``, an objective of the same architecture."""
        self.rows = {i: rows.to(self.device) for i, rows in other.rows.items()}
        self.n, self.untouched = other.n, other.untouched

    def twin(self, model: nn.Module, batches: Sequence[Batch]) -> "Objective":
        """The same loss, without weight decay, of a copy of the model on other data; nothing is checked again."""
        other = copy.copy(self)
        named = dict(model.named_parameters())
        other.model, other.batches, other.weight_decay = model, batches, 0.0
        other.notes, other.cost = [], Cost()
        other.parameters = [named[name] for name in self.names]
        other.dtype, other.device = other.parameters[0].dtype, other.parameters[0].device
        other.share_vectors(self)
        with torch.no_grad(), other.untouched_buffers():
            found = [self.terms(model, batch.data) for batch in batches]
        other.weight = sum(count for _, count in found)
        other.loss = sum(float(total) for total, _ in found) / other.weight
        return other

    def sizes(self) -> list[int]:
        """Entries that each parameter has in a vector."""
        return [
            p.numel() * len(self.rows[i]) // len(p) if i in self.rows else p.numel()
            for i, p in enumerate(self.parameters)
        ]

    def _leave_out(self, lookups: Lookups, total: Tensor) -> None:
        """Leave rows that no sample looks up out of all vectors, where they are many."""
        if self.weight_decay:
            return  # it bends the surface along them too
        nodes = uses(total, self.parameters)
        masks = [lookups.untouched(p, nodes[id(p)]) for p in self.parameters]
        entries = [
            0 if m is None else int(m.sum()) * p[0].numel()
            for m, p in zip(masks, self.parameters, strict=True)
        ]
        if sum(entries) < WORTHWHILE * self.n:
            return
        for i, mask in enumerate(masks):
            if mask is not None:
                self.rows[i] = (~mask).nonzero()[:, 0]
        self.untouched = sum(entries)
        self.n = sum(self.sizes())
        self.notes.append(
            f"{self.untouched:,} entries of {some(self.names[i] for i in self.rows)} are looked up by no sample: "
            "gradient and curvature are exactly zero there, and they are left out of all vectors"
        )

    @contextmanager
    def moved(self, step_N: Tensor) -> Iterator[None]:
        """θ + ``step_N`` for the time being; θ is restored to the bit, and kept graphs stay valid."""
        # Another storage, not another content: graphs that were kept stay valid.
        before = [p.data for p in self.parameters]
        try:
            for p, old, part in zip(self.parameters, before, self.views(step_N), strict=True):
                p.data = old + part
            yield
        finally:
            for p, old in zip(self.parameters, before, strict=True):
                p.data = old

    @contextmanager
    def untouched_buffers(self) -> Iterator[None]:
        """See `untouched_buffers`."""
        with untouched_buffers(self.model):
            yield

    def _decay(self) -> float:
        if not self.weight_decay:
            return 0.0
        squares = sum(float(p.detach().double().square().sum()) for p in self.parameters)
        return 0.5 * self.weight_decay * squares

    def _check_loss(self) -> tuple[float, float]:
        """Evaluate twice; the two must agree and be finite. Returns (L, W)."""
        sums, weight = [], 0.0
        lookups = Lookups(self.parameters)
        together = self._evaluated_together()
        self.evaluated_bytes = 0
        for watched in (True, False):
            total, weight = 0.0, 0.0
            with torch.no_grad(), self.untouched_buffers():
                for batch in self.batches:
                    with ExitStack() as watching:
                        meter = MemoryMeter()
                        if watched:
                            watching.enter_context(lookups)
                            watching.enter_context(meter)
                        for piece in batch.pieces(together or batch.size):
                            part, count = self.terms(self.model, piece.data)
                            total += float(part)
                            weight += count
                    self.evaluated_bytes = max(self.evaluated_bytes, meter.total)
            sums.append(total)
        if weight <= 0:
            raise DataError(
                "the batches have no loss terms: every target is ignored",
                "check ignore_index and the labels",
            )
        first, second = sums
        if not math.isfinite(first) and not self.accept_nonfinite:
            raise NonFiniteError(
                why_not_finite(first, self.model, self.batches, self.terms),
                "look for overflow: try --dtype float64",
            )
        # Atomic additions on GPUs change the last bits; randomness changes the first ones.
        if abs(first - second) > 1e3 * torch.finfo(self.dtype).eps * abs(first):
            suspects = random_modules(self.model, self.batches[0], self.terms)
            raise LossError(
                f"the loss is random: {first / weight:.6g} and then {second / weight:.6g} on the same "
                f"data; random modules: {some(suspects)}",
                "make the model deterministic in eval mode (dropout and sampling off)",
            )
        with torch.enable_grad(), self.untouched_buffers():
            piece = next(self.batches[0].pieces(1 if self.splittable else self.batches[0].size))
            one = self.terms(self.model, piece.data)[0]
        if one.requires_grad:
            self._leave_out(lookups, one)
        elif not self.weight_decay:
            raise LossError(
                "the loss does not depend on the parameters: no gradient reaches any of them",
                "look for .detach(), torch.no_grad() or .item() in the model or the loss",
            )
        return first / weight + self._decay(), weight

    def _evaluated_together(self) -> int | None:
        """Samples whose loss is evaluated at a time within the memory; None: whole batches."""
        if self.memory is None or not self.splittable:
            return None
        largest = max(self.batches, key=lambda b: b.size)
        piece = next(largest.pieces(_MEASURED))
        with torch.no_grad(), self.untouched_buffers(), MemoryMeter() as meter:
            self.terms(self.model, piece.data)
        # Half of what is free: the kernels' own buffers are not seen.
        room = (self.memory - used_memory(self.device)) / 2
        return max(1, int(room * piece.size / max(1, meter.peak)))


def flatten(parts: Sequence[Tensor]) -> Tensor:
    """The tensors one after the other as one vector."""
    return torch.cat([part.reshape(-1) for part in parts])
