"""The diagonal blocks H_ll of a curvature matrix, one for each layer of the network, as linear maps.

A block's product on a kept first-order graph is the derivative of ⟨g_l, v_l⟩ in the parameters of layer l only:
autograd leaves out what does not lead there, so that the layers behind l cost 2 matmul-units instead of 6, and those
before it nothing. All blocks use the same graph.

Shapes: ``N`` parameters of the network or of one block.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.objective.objective import Objective
from curvcli.operators.autodiff.pullback import pullback
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.hessian import Hessian

# Weights that a parametrisation computes belong to the module that uses them.
_PARAMETRISED = re.compile(r"\.?parametrizations\..*$")
# Samples that are run to see in which order the modules come.
_PROBE = 1


@dataclass(frozen=True)
class Block:
    """Some of the parameters, and their part of a vector."""

    name: str
    positions: tuple[int, ...]
    """Of its parameters in the objective's list of tensors."""
    n: int
    """Entries that it has in a vector."""
    parameters: int
    """Entries of its parameters, those that no sample looks up included."""
    dtype: torch.dtype
    device: torch.device
    ranks: Ranks = ALONE
    """The processes that each hold a part of it."""

    @property
    def untouched(self) -> int:
        """Entries of embeddings that no sample looks up: zero rows of the block."""
        return self.parameters - self.n


def blocks_of(objective: Objective, by: Literal["layer", "block"]) -> list[Block]:
    """The parameters by the module that owns them, in the order in which the modules are run.

    Args:
        objective: L; a tied parameter belongs to the first module that owns it.
        by: ``layer``: weight and bias of one module together; ``block``: all modules within a numbered entry of a
            list, such as ``blocks.0`` of a transformer, together.
    """
    names: dict[str, list[int]] = {}
    tensors = objective.tensors
    owners = [
        _PARAMETRISED.sub("", name) if _PARAMETRISED.search(name) else name.rpartition(".")[0]
        for name in (held.name for held in tensors)
    ]
    numbered = _numbered(owners)
    for i, owner in enumerate(owners):
        names.setdefault(numbered[owner] if by == "block" else owner, []).append(i)
    order, whole = _order(objective), type(objective.model).__name__

    def block(name: str, positions: list[int]) -> Block:
        held = [tensors[i] for i in positions]
        lengths = [sum(of_all) for of_all in zip(*(h.lengths for h in held), strict=True)]
        return Block(
            name or whole,
            tuple(positions),
            sum(lengths) if lengths else sum(h.own.stop - h.own.start for h in held),
            sum(h.shape.numel() for h in held),
            objective.dtype,
            objective.device,
            objective.ranks.of_entries(lengths),
        )

    return [block(*item) for item in sorted(names.items(), key=lambda item: order(item[0]))]


def _numbered(names: list[str]) -> dict[str, str]:
    """``blocks.0`` for ``blocks.0.attention.qkv``, each name itself where no part of it is a number.

    A number at the very beginning counts only where none follows a name: of ``0.encoder.layer.5.query`` it is
    ``0.encoder.layer.5``, in a plain sequence ``0``.
    """
    inner = {
        name: next((i for i, part in enumerate(parts) if i and part.isdigit() and not parts[i - 1].isdigit()), 0)
        for name in names
        for parts in [name.split(".")]
    }  # fmt: skip
    divided = {name.split(".")[0] for name in names if inner[name]}

    def of(name: str) -> str:
        parts = name.split(".")
        if inner[name]:
            return ".".join(parts[: inner[name] + 1])
        return parts[0] if parts[0].isdigit() and parts[0] not in divided else name

    return {name: of(name) for name in names}


def _order(objective: Objective) -> Callable[[str], tuple[int, int]]:
    """A key that sorts names of modules by when they are first run, then as they are registered."""
    seen: dict[str, int] = {}
    handles = []
    registered = {name: i for i, (name, _) in enumerate(objective.model.named_modules())}
    for name, module in objective.model.named_modules():

        def note(_module: nn.Module, _inputs: Any, name: str = name) -> None:
            seen.setdefault(name, len(seen))

        handles.append(module.register_forward_pre_hook(note))
    try:
        batch = objective.batches[0]
        piece = next(iter(batch.pieces(_PROBE if objective.splittable else batch.size)))
        with torch.no_grad(), objective.evaluation():
            objective.terms(objective.model, piece.data)
    finally:
        for handle in handles:
            handle.remove()

    def key(name: str) -> tuple[int, int]:
        # A module that is not called itself (a part of an attention layer) comes with what it lies in.
        around = name
        while around not in seen and around:
            around = around.rpartition(".")[0]
        return seen.get(around, 0), registered.get(name, 0)

    return key


class DiagonalBlocks:
    """Products with all blocks H_ll at once.

    Args:
        operator: H. The Hessian has block products of its own; of any other kind, and where products are finite
            differences, a block's product is cut out of a whole one.
        blocks: see `blocks_of`.

    The loss (w₂ w₁)² at w = (1, 3) has the blocks 2 w₂² and 2 w₁²:

    >>> from curvcli.loading.loss import loss_terms
    >>> from curvcli.objective.batch import Batch
    >>> from curvcli.objective.checks import make_objective
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    >>> for weight, value in zip(model.parameters(), (1.0, 3.0)):
    ...     _ = weight.data.fill_(value)
    >>> batch = Batch(((torch.ones(1, 1),), {}, torch.zeros(1, 1)), 1)
    >>> objective = make_objective(model, [batch], loss_terms("mse", {}))
    >>> op = DiagonalBlocks(Hessian(objective), blocks_of(objective, by="layer"))
    >>> [product_N.item() for product_N in op.products([torch.ones(1), torch.ones(1)])]
    [18.0000, 2.0000]
    """

    def __init__(self, operator: Curvature[Any], blocks: Sequence[Block]) -> None:
        self.operator, self.blocks = operator, blocks
        tensors = operator.objective.tensors
        self._slices = [[tensors[i].own for i in block.positions] for block in blocks]
        self._within = [_Within.of(operator.objective, block) for block in blocks]

    @property
    def pruned(self) -> bool:
        """Whether a block's product costs less than a whole one."""
        return type(self.operator) is Hessian and not self.operator.finite_differences

    def cut(self, v_N: Tensor) -> list[Tensor]:
        """The parts of a vector that belong to the blocks."""
        return [torch.cat([v_N[s] for s in slices]) for slices in self._slices]

    def embed(self, index: int, v_N: Tensor) -> Tensor:
        """A block's vector as one of the whole network, zero elsewhere."""
        out_N = torch.zeros(self.operator.length, dtype=v_N.dtype, device=v_N.device)
        slices = self._slices[index]
        parts = v_N.split([s.stop - s.start for s in slices])
        for place, part in zip(slices, parts, strict=True):
            out_N[place] = part
        return out_N

    def products(self, vectors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """H_ll v_l for every block that has a vector.

        Together they are one product with the block-diagonal part of H, and are counted as one.
        """
        objective = self.operator.objective
        count = objective.cost.matvecs
        found: list[Tensor | None]
        if self.pruned:
            found = self._summed(
                self.operator.within_memory(lambda: self._pruned(vectors)), vectors
            )
        else:
            found = [
                None if v_N is None else self.cut(self.operator.matvec(self.embed(i, v_N)))[i]
                for i, v_N in enumerate(vectors)
            ]
        objective.cost.matvecs = count + 1
        return found

    def _summed(
        self, own: list[Tensor | None], vectors: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The products over the data of all processes, with the weight decay."""
        objective = self.operator.objective
        known = [v_N for v_N in own if v_N is not None]
        parts = iter(objective.ranks.over_data(torch.cat(known)).split([len(v_N) for v_N in known]))
        return [
            None if v_N is None else next(parts).add(v_N, alpha=objective.weight_decay)
            for v_N in vectors
        ]

    def _pruned(self, vectors: Sequence[Tensor | None]) -> list[Tensor | None]:
        objective = self.operator.objective
        views = [
            [] if v_N is None else objective.views(within.spread(v_N), within.positions)
            for within, v_N in zip(self._within, vectors, strict=True)
        ]
        out = [None if v_N is None else torch.zeros_like(v_N) for v_N in vectors]
        for graph in self.operator.graphs():
            gradients = dict(zip(graph.positions, graph.gradients, strict=True))
            with self.operator.kernels.active():
                for within, parts, out_N in zip(self._within, views, out, strict=True):
                    if out_N is not None:
                        self._add_product(gradients, within, parts, out_N)
        return out

    def _add_product(
        self,
        gradients: dict[int, Tensor],
        within: "_Within",
        views: list[Tensor],
        out_N: Tensor,
    ) -> None:
        """``out_N`` += the contribution of one piece of the data."""
        objective, positions = self.operator.objective, within.positions
        chosen = [k for k, i in enumerate(positions) if i in gradients]
        if not chosen:
            return
        parts = pullback(
            [gradients[positions[k]] for k in chosen],
            [objective.parameters[i] for i in positions],
            [views[k] for k in chosen],
        )
        out_N.add_(within.gather(objective.flatten(parts, positions)))


class _Within(NamedTuple):
    """Where the entries of a block are in the objective's parameters: all of these, or some of shares of weights."""

    positions: tuple[int, ...]
    """Of the parameters that have them;"""
    length: int
    """their entries in a vector,"""
    slices: list[slice] | None
    """and which of these are the block's; None: all."""

    @classmethod
    def of(cls, objective: Objective, block: Block) -> "_Within":
        """Of a block."""
        held, sizes = [objective.tensors[i] for i in block.positions], objective.sizes()
        positions = tuple(sorted({h.position for h in held}))
        length = sum(sizes[i] for i in positions)
        if not objective.divided:
            return cls(positions, length, None)
        starts = list(accumulate(sizes, initial=0))
        within = dict(
            zip(positions, accumulate((sizes[i] for i in positions), initial=0), strict=False)
        )
        moves = [within[h.position] - starts[h.position] for h in held]
        slices = [slice(h.own.start + m, h.own.stop + m) for h, m in zip(held, moves, strict=True)]
        return cls(positions, length, slices)

    def spread(self, v_N: Tensor) -> Tensor:
        """A block's vector as one of the parameters, zero elsewhere."""
        if self.slices is None:
            return v_N
        out_N = v_N.new_zeros(self.length)
        for place, part in zip(
            self.slices, v_N.split([s.stop - s.start for s in self.slices]), strict=True
        ):
            out_N[place] = part
        return out_N

    def gather(self, v_N: Tensor) -> Tensor:
        """The block's entries of such a vector."""
        return v_N if self.slices is None else torch.cat([v_N[s] for s in self.slices])
