"""A network whose weights are divided among processes, block by block."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.linalg.ranks import Group, Parted
from curvcli.objective.layout import Held
from curvcli.objective.sharding.gather import Gatherer

Read = Callable[[str, int, int], Tensor]
"""(name of a parameter, first entry, the one after the last) -> these entries, flat."""

# What a block has in place of its parameters; a number follows.
_SHARD = "shard_of_weights"


@dataclass(frozen=True)
class _Slot:
    """Where a module expects a parameter."""

    owner: nn.Module
    name: str
    index: int
    """Of the parameter among those of the flat; tied ones are one."""


class Flat:
    """Parameters of a block end to end, all trainable or none, of which this process holds a share.

    Args:
        shapes: of the parameters.
        slots: where they go.
        home: the block, and the name it has this process' share under.
        gatherer: gathers them.
    """

    def __init__(
        self,
        shapes: list[torch.Size],
        slots: list[_Slot],
        home: tuple[nn.Module, str],
        gatherer: Gatherer,
    ) -> None:
        self._shapes, self._slots, self._gatherer = shapes, slots, gatherer
        self._module, self._name = home
        self._sizes = [shape.numel() for shape in shapes]
        self._n = sum(self._sizes)

    def put(self) -> None:
        """Gather the weights, and give each module its own."""
        shard = self._module._parameters[self._name]
        assert shard is not None
        whole_N = self._gatherer.weights(shard, self._n)
        parts = [p.view(s) for p, s in zip(whole_N.split(self._sizes), self._shapes, strict=True)]
        for slot in self._slots:
            _put(slot, parts[slot.index])

    def take(self) -> None:
        """Take the weights away from the modules again."""
        for slot in self._slots:
            _put(slot, None)


def _put(slot: _Slot, weight: Tensor | None) -> None:
    slot.owner._parameters[slot.name] = weight  # type: ignore[assignment]
    if isinstance(slot.owner, nn.RNNBase):
        # Recurrent layers hold a list of their weights beside.
        slot.owner._flat_weights = [
            slot.owner._parameters[n] for n in slot.owner._flat_weights_names
        ]


class Block:
    """A module that gathers its weights when it is called."""

    def __init__(self, module: nn.Module) -> None:
        self.flats: list[Flat] = []
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, args: Any) -> None:
        for flat in self.flats:
            flat.put()

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        for flat in self.flats:
            flat.take()


@dataclass(frozen=True)
class Shards:
    """What a divided network needs to be evaluated: the processes, and what gathers its weights."""

    ranks: Parted
    gatherer: Gatherer
    tensors: Sequence[Held]
    """The trainable parameters that it had, and where their entries are."""

    @property
    def options(self) -> dict[str, Any]:
        """Those of `make_objective` that hang on the division."""
        return {"ranks": self.ranks, "lean": self.gatherer.lean, "divided": self.tensors}


def is_shard(name: str) -> bool:
    """Whether a parameter of that name is a share of a block's weights."""
    return name.rpartition(".")[2].startswith(_SHARD)


def divide(model: nn.Module, ranks: Group, read: Read | None = None) -> Shards:
    """Replace the parameters of ``model``, in place, by this process' share of each block's.

    A block is an element of the network's outermost lists of modules (its layers); what is in none of them, or in
    several, belongs to the network itself and is gathered for the whole pass. What needs no gradient is divided too.

    Args:
        model: the network; its parameters may be on the meta device.
        ranks: the processes.
        read: gives parts of the parameters; None: they are there.
    """
    gatherer = Gatherer(ranks)
    names = {id(p): name for name, p in model.named_parameters()}
    trainable_names = [name for name, p in model.named_parameters() if p.requires_grad]
    members: dict[int, list[tuple[str, torch.Size]]] = {}
    read = read or _present(model)
    for module, owned in _owned(model).items():
        block = Block(module)
        kinds: dict[tuple[bool, torch.dtype], list[tuple[nn.Module, str, nn.Parameter]]] = (
            defaultdict(list)
        )
        for owner, name, p in owned:
            kinds[p.requires_grad, p.dtype].append((owner, name, p))
        for i, ((trainable, dtype), entries) in enumerate(kinds.items()):
            distinct = {id(p): p for _, _, p in entries}
            order = {key: j for j, key in enumerate(distinct)}
            n = sum(p.numel() for p in distinct.values())
            parts = _read_share(
                [(names[key], p.numel()) for key, p in distinct.items()], ranks.share(n), read
            )
            own = torch.cat([*parts, torch.empty(0, dtype=dtype)]).to(dtype)
            slots = [_Slot(owner, name, order[id(p)]) for owner, name, p in entries]
            flat = Flat(
                [p.shape for p in distinct.values()], slots, (module, f"{_SHARD}{i}"), gatherer
            )
            shard = nn.Parameter(own, requires_grad=trainable)
            module.register_parameter(f"{_SHARD}{i}", shard)
            flat.take()
            block.flats.append(flat)
            if trainable:
                members[id(shard)] = [(names[key], p.shape) for key, p in distinct.items()]
    # θ has the shares in the order in which the network names them.
    held = _held([members[id(p)] for p in model.parameters() if p.requires_grad], ranks)
    lengths = [sum(h.lengths[r] for h in held.values()) for r in range(ranks.size)]
    return Shards(Parted(ranks, lengths), gatherer, [held[name] for name in trainable_names])


def _held(flats: Sequence[Sequence[tuple[str, torch.Size]]], ranks: Group) -> dict[str, Held]:
    """The (name, shape) of parameters in flats that follow each other in a vector, by name."""
    found, begin = {}, 0
    for position, flat in enumerate(flats):
        n = sum(shape.numel() for _, shape in flat)
        shares = [ranks.share(n, r) for r in range(ranks.size)]
        mine, start = shares[ranks.rank], 0
        for name, shape in flat:
            end = start + shape.numel()
            lengths = [max(0, min(s.stop, end) - max(s.start, start)) for s in shares]
            first = max(mine.start, start)
            place = begin + first - mine.start
            own = slice(place, place + lengths[ranks.rank])
            found[name] = Held(name, shape, own, first - start, position, lengths)
            start = end
        begin += mine.stop - mine.start
    return found


def _present(model: nn.Module) -> Read:
    """Parts of parameters that are there."""
    held = dict(model.named_parameters())
    return lambda name, first, last: held[name].detach().reshape(-1)[first:last].clone()


def _read_share(parameters: Sequence[tuple[str, int]], own: slice, read: Read) -> list[Tensor]:
    """The entries ``own`` of parameters of these names and sizes, end to end."""
    parts, start = [], 0
    for name, size in parameters:
        first, last = max(own.start - start, 0), min(own.stop - start, size)
        if first < last:
            parts.append(read(name, first, last))
        start += size
    return parts


def _owned(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str, nn.Parameter]]]:
    """The parameters of each block, and of the network itself, where modules expect them."""
    inside: dict[nn.Module, nn.Module] = {}
    for block in _blocks(model):
        for module in block.modules():
            inside.setdefault(module, block)
    users: dict[int, set[nn.Module]] = defaultdict(set)
    everywhere = []
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                users[id(p)].add(inside.get(module, model))
                everywhere.append((module, name, p))
    found: dict[nn.Module, list[tuple[nn.Module, str, nn.Parameter]]] = defaultdict(list)
    for module, name, p in everywhere:
        shared = len(users[id(p)]) > 1
        found[model if shared else inside.get(module, model)].append((module, name, p))
    return dict(found)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of the outermost lists of modules."""
    if isinstance(module, nn.ModuleList | nn.Sequential):
        yield from (block for block in module if next(block.parameters(), None) is not None)
        return
    for child in module.children():
        yield from _blocks(child)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are made here have their parameters on the meta device, where they take no memory; not buffers."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
