"""The function whose surface is inspected: L(θ) over frozen batches.

L(θ) = (Σ_b Σ_i ℓ_bi) / W + (wd/2) ‖θ‖², where W counts the *loss terms*, so that the same data split into
other batches gives the same L, gradient and Hessian.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.vectors import double
from curvcli.objective.batch import Batch
from curvcli.objective.layout import Held, Layout
from curvcli.objective.network import evaluation, uses_batch_statistics
from curvcli.objective.terms import LossTerms


@dataclass
class Cost:
    """Work done so far."""

    matvecs: int = 0
    """Products over all batches."""
    gradients: int = 0
    """Gradients over all batches."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """L(θ) and its gradient; made and checked by `make_objective`.

    Args:
        model: on its device, in its dtype and mode; its parameters are θ.
        batches: what the mean runs over.
        terms: the loss, see `LossTerms`.
        names: of the parameters that θ is made of; the others are held fixed.
        layout: θ as a vector.
        loss: L(θ).
        weight: W, the loss terms of all batches.
        weight_decay: wd of the quadratic term.
        plain: products use torch's own operations only, see `operators.autodiff.rewrites`.
        tf32: whether products on CUDA may be in TF32.
        memory: bytes that the process may use in all; None: as many as there are.
        offload: where Krylov bases are kept, see `linalg.storage`; None: on the device.
        evaluated_bytes: of all tensors that the loss of the largest batch made on its way, not counted again
            after they were freed.
        ranks: processes that share the data out; every one of them has all of it.
        lean: within it graphs keep no weights that were gathered from other processes.
        divided: the network's own parameters, where they are divided and ``names`` are those of shares of blocks.
        notes: what was switched, skipped or assumed.
    """

    model: nn.Module
    batches: Sequence[Batch]
    terms: LossTerms
    names: Sequence[str]
    layout: Layout
    loss: float
    weight: float
    weight_decay: float = 0.0
    plain: bool = False
    tf32: bool = False
    memory: int | None = None
    offload: str | None = None
    evaluated_bytes: int = 0
    ranks: Ranks = ALONE
    lean: Callable[[], AbstractContextManager[None]] = nullcontext
    divided: Sequence[Held] = ()
    notes: list[str] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """θ as tensors."""
        return self.layout.parameters

    @property
    def n(self) -> int:
        """Length of the vectors: all entries of the parameters but the untouched ones."""
        return self.ranks.dimension(self.layout.n)

    @property
    def length(self) -> int:
        """Entries of a vector that this process holds: all n, unless vectors are parted."""
        return self.layout.n

    @property
    def untouched(self) -> int:
        """Entries of embeddings that no sample looks up, where ∇L and H are exactly zero; vectors leave them out."""
        return self.layout.untouched

    @property
    def dimension(self) -> int:
        """Number of parameters, untouched ones included: rows of the whole Hessian."""
        return self.n + self.untouched

    @property
    def dtype(self) -> torch.dtype:
        """Of θ."""
        return self.parameters[0].dtype

    @property
    def device(self) -> torch.device:
        """Of θ."""
        return self.parameters[0].device

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

    def mine(self, batch: Batch, index: int = 0) -> Batch | None:
        """This process' part of a batch: a share of the samples, or all of every so manieth batch; None: nothing.

        Args:
            batch: any.
            index: its number among those that may not be cut.
        """
        if self.ranks.size == 1:
            return batch
        if self.splittable and batch.splittable:
            return batch.between(self.ranks.share(batch.size))
        return batch if index % self.ranks.size == self.ranks.rank else None

    def pieces_of(self, batch: Batch, index: int, samples: int | None) -> Iterator[Batch]:
        """This process' part of a batch, see `mine`, in micro-batches of ``samples``."""
        part = self.mine(batch, index)
        own = [] if part is None else list(part.pieces(samples or part.size))
        yield from own
        if self.ranks.parted:
            # Weights are gathered in every pass, by all processes at once.
            largest = self.ranks.largest_share(batch.size) if self.splittable else batch.size
            missing = -(-largest // (samples or largest)) - len(own)
            some = batch.between(slice(0, 1)) if self.splittable else batch
            yield from [replace(some or batch, idle=True)] * missing

    def pieces(self, samples: int | None = None) -> Iterator[Batch]:
        """This process' part of all batches, in micro-batches of ``samples``."""
        for index, batch in enumerate(self.batches):
            yield from self.pieces_of(batch, index, samples)

    def sum_of(self, batch: Batch) -> Tensor:
        """This batch's part of L without weight decay, Σ_i ℓ_i / W, with its graph."""
        with self.evaluation():
            total, _ = self.terms(self.model, batch.data)
        return total / self.weight if not batch.idle else 0.0 * total

    def value(self, samples: int | None = None) -> float:
        """L(θ) at the present parameters, from micro-batches of ``samples``."""
        with torch.no_grad():
            part = sum(float(self.sum_of(piece)) for piece in self.pieces(samples))
        (total,) = self.ranks.totals(part)
        return total + decay(self.weight_decay, self.parameters, self.ranks)

    def gradient(self, samples: int | None = None) -> Tensor:
        """∇L(θ), flat, shape (n,), from micro-batches of ``samples``."""
        flat_N = torch.zeros(self.length, dtype=self.dtype, device=self.device)
        for piece in self.pieces(samples):
            flat_N += self.gradient_of(piece)
        flat_N = self.ranks.over_data(flat_N)
        self.cost.gradients += 1
        if self.weight_decay:
            flat_N += self.weight_decay * self.flat()
        return flat_N

    def gradient_of(self, batch: Batch) -> Tensor:
        """This batch's part of ∇L without weight decay, flat, shape (n,)."""
        total = self.sum_of(batch)
        if not total.requires_grad:
            return torch.zeros(self.length, dtype=self.dtype, device=self.device)
        return self.flatten(
            torch.autograd.grad(total, self.parameters, allow_unused=True, materialize_grads=True)
        )

    def flat(self) -> Tensor:
        """θ as one vector of shape (n,), a copy."""
        return self.flatten([p.detach() for p in self.parameters])

    def flatten(self, parts: Sequence[Tensor], positions: Sequence[int] | None = None) -> Tensor:
        """See `Layout.flatten`."""
        return self.layout.flatten(parts, positions)

    def views(self, v_N: Tensor, positions: Sequence[int] | None = None) -> list[Tensor]:
        """See `Layout.views`."""
        return self.layout.views(v_N, positions)

    def sizes(self) -> list[int]:
        """See `Layout.sizes`."""
        return self.layout.sizes()

    @property
    def tensors(self) -> Sequence[Held]:
        """θ as the network has it, and where this process' part of a vector has it."""
        if self.divided:
            return self.divided
        ends = list(accumulate(self.sizes()))
        return [
            Held(name, p.shape, slice(end - size, end), 0, i)
            for i, (name, p, size, end) in enumerate(
                zip(self.names, self.parameters, self.sizes(), ends, strict=True)
            )
        ]

    def whole(self, v_N: Tensor, index: int) -> Tensor:
        """What a vector has of the parameter of that number in `tensors`, shaped like it; every process gets it."""
        held = self.tensors[index]
        own_N = v_N[held.own]
        if not self.divided:
            return self.views(own_N, [index])[0]
        whole_N = own_N.new_zeros(held.shape.numel())
        whole_N[held.first : held.first + len(own_N)] = own_N
        return self.ranks.over_entries(whole_N).view(held.shape)

    def own(self, whole: Tensor, index: int) -> Tensor:
        """This process' part, flat, of a tensor shaped like the parameter of that number in `tensors`."""
        held = self.tensors[index]
        if not self.divided:
            return self.flatten([whole], [index])
        length = held.own.stop - held.own.start
        return whole.reshape(-1)[held.first : held.first + length]

    def twin(self, model: nn.Module, batches: Sequence[Batch]) -> "Objective":
        """The same loss, without weight decay, of a copy of the model on other data; nothing is checked again."""
        named = dict(model.named_parameters())
        parameters = [named[name] for name in self.names]
        device = parameters[0].device
        rows = {i: rows.to(device) for i, rows in self.layout.rows.items()}
        with torch.no_grad(), evaluation(model):
            found = [self.terms(model, batch.data) for batch in batches]
        # Samples whose targets are all ignored have no loss terms, and no loss.
        weight = sum(count for _, count in found) or 1.0
        return Objective(
            model=model,
            batches=batches,
            terms=self.terms,
            names=self.names,
            layout=Layout(parameters, rows),
            loss=sum(float(total.detach()) for total, _ in found) / weight,
            weight=weight,
            plain=self.plain,
            tf32=self.tf32,
            memory=self.memory,
            offload=self.offload,
            evaluated_bytes=self.evaluated_bytes,
            ranks=self.ranks if self.ranks.parted else ALONE,
            lean=self.lean,
            divided=self.divided,
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
    def evaluation(self) -> Iterator[None]:
        """See `evaluation`."""
        with evaluation(self.model), self.lean():
            yield


def decay(weight_decay: float, parameters: Sequence[Tensor], ranks: Ranks = ALONE) -> float:
    """(wd/2) ‖θ‖².

    >>> decay(2.0, [torch.tensor([3.0]), torch.tensor([4.0])])
    25.0
    """
    if not weight_decay:
        return 0.0
    squares = sum(double(p.detach()).square().sum() for p in parameters)
    return 0.5 * weight_decay * float(ranks.over_entries(torch.as_tensor(squares)))
