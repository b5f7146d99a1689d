"""The main path of a network, cut into layers whose Jacobians multiply to the whole.

A tensor is a *cut* when every way from source to target leads through it. Between consecutive cuts the chain rule
is a plain product of matrices; a residual branch lies within one layer. The inputs of modules are the
candidates, and the autograd graph tells which of them are cuts: those through which all paths go.

Shapes: ``S`` samples, ``M`` outputs, ``N`` inputs of a layer.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.errors import MemoryLimitError, ModelError
from curvcli.linalg.svd.bidiagonal import steps_that_fit
from curvcli.machine.memory import HELD, Need, human, room
from curvcli.machine.meter import MemoryMeter
from curvcli.objective.batch import Batch
from curvcli.operators.jacobian.chunks import matrix_bytes
from curvcli.operators.jacobian.jacobian import SMALL_PIECE, Jacobian, Structure
from curvcli.operators.jacobian.spectra import Settings, Spectra, spectra
from curvcli.operators.jacobian.taps import Passage

# Nodes that only rename or reorder entries: on both sides of them is the same point of the path.
_REORDERING = {
    "CloneBackward0", "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0",
    "UnsqueezeBackward0", "SqueezeBackward0", "SqueezeBackward1", "PermuteBackward0", "TransposeBackward0",
}  # fmt: skip

# Singular values within this of 1 count as 1: dynamical isometry.
ISOMETRY = 0.1


@dataclass(frozen=True)
class Cut:
    """A point that every path goes through, and the module that is entered there."""

    name: str
    kind: str
    tensors: list[Tensor]


@dataclass(frozen=True)
class Layer:
    """A module and what follows it up to the next cut."""

    name: str
    kind: str
    own: Spectra
    running: Spectra
    """Of the product J_l ⋯ J_1, measured."""


@dataclass(frozen=True)
class Chain:
    """The layers of the main path, first to last."""

    layers: list[Layer]
    check: float
    """Largest relative difference of v ↦ J_1ᵀ ⋯ J_Lᵀ v to v ↦ Jᵀ v."""
    products: int


def measure_chain(
    passage: Passage,
    batch: Batch,
    structure: Structure,
    settings: Settings,
    seeds: Sequence[int],
) -> Chain:
    """Jacobians of all layers and of their running product, on one graph.

    Args:
        passage: network, source and target.
        batch: the samples.
        structure: see `jacobian.explore`.
        settings: how norms and singular values are computed.
        seeds: one for each matrix.
    """
    cuts, target = find_cuts(passage, batch)
    ends = [*(cut.tensors for cut in cuts[1:]), [target]]

    def between(sources: list[Tensor], end: list[Tensor]) -> Jacobian:
        return Jacobian(sources, end[0], batch.size, structure, passage.kernels)

    layers, steps, products = [], [], 0
    for cut, end in zip(cuts, ends, strict=True):
        own, running = between(cut.tensors, end), between(cuts[0].tensors, end)
        measured = spectra(own, settings, seeds)
        # The first layer is its own running product.
        whole = measured if cut is cuts[0] else spectra(running, settings, seeds)
        layers.append(Layer(cut.name, cut.kind, measured, whole))
        steps.append(own)
        products += own.products + running.products
        own.forget()
        if settings.stop():
            break
    return Chain(layers, _check(steps, between(cuts[0].tensors, ends[len(steps) - 1])), products)


def samples_that_fit(
    passage: Passage, batch: Batch, structure: Structure, settings: Settings, limit: int | None
) -> tuple[int, int]:
    """Samples of the batch whose chain can be measured within the process' limit, and the Krylov steps for them.

    Raises:
        MemoryLimitError: not even one sample fits.
    """
    whole = structure.coupled or not batch.splittable
    with MemoryMeter() as meter:
        small = batch if whole else next(iter(batch.pieces(SMALL_PIECE)))
        cuts, target = find_cuts(passage, small)
        ends = [*(cut.tensors for cut in cuts[1:]), [target]]
        ops = [
            Jacobian(sources, end[0], small.size, structure, passage.kernels)
            for cut, end in zip(cuts, ends, strict=True)
            for sources in (cut.tensors, cuts[0].tensors)
        ]
        longest = ops[-1]
        longest.vjp(torch.zeros(longest.count, longest.rows).to(longest.device, longest.dtype))
        if any(settings.chosen(op) != "dense" or op.columns < op.rows for op in ops):
            zeros = torch.zeros(longest.count, longest.columns)
            longest.jvp(zeros.to(longest.device, longest.dtype))
    graph = HELD * meter.peak / small.size
    share = longest.count / small.size
    need = Need(0.0, graph + share * max(matrix_bytes(op, settings) for op in ops))
    available = room(longest.device, limit)
    least = batch.size if whole else 1
    if need.of(least) > available:
        raise MemoryLimitError(
            f"{human(available)} are available; the layers' Jacobians of one {'batch' if whole else 'sample'} "
            f"need {human(need.of(least))}",
            "raise --memory, or drop --per-layer",
        )
    samples = min(batch.size, max(least, need.samples_within(available)))
    left = (available - Need(0.0, graph).of(samples)) / max(1.0, share * samples)
    itemsize = torch.finfo(longest.dtype).bits // 8
    steps = [
        steps_that_fit(left, op.rows, op.columns, itemsize)
        for op in ops
        if settings.chosen(op) != "dense"
    ]
    return samples, max(2, min(steps, default=settings.max_steps))


def isometry(found: Spectra) -> bool | None:
    """Whether all min(m, n) singular values of all matrices lie within 10 % of 1; None: not decided.

    Where the matrices are not formed, a σ₁ above, or a mean square below the interval proves that they do not.
    """
    low, high = 1 - ISOMETRY, 1 + ISOMETRY
    if found.all_SL is not None:
        return bool(((found.all_SL >= low) & (found.all_SL <= high)).all())
    too_large = bool((found.values_SK[:, 0] - found.residuals_SK[:, 0] > high).any())
    norm_S = found.frobenius_S + 3 * found.frobenius_error_S
    too_small = bool((norm_S.square() / min(found.rows, found.columns) < low**2).any())
    return False if too_large or too_small else None


def find_cuts(passage: Passage, batch: Batch) -> tuple[list[Cut], Tensor]:
    """The cuts from the source on, and the target, as nodes of one graph.

    The same point entered by several modules (a container and its first child) goes by the innermost.
    """
    seen: list[Cut] = []

    def watch(name: str) -> Any:
        calls = [0]

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            calls[0] += 1
            label = name if calls[0] == 1 else f"{name} ({calls[0]})"
            return _mark(label, module, args, kwargs, seen)

        return hook

    with ExitStack() as stack:
        for name, module in passage.model.named_modules():
            if name:
                handle = module.register_forward_pre_hook(watch(name), with_kwargs=True)
                stack.callback(handle.remove)
        taps = passage.run(batch)
    if not taps.target.requires_grad:
        raise ModelError(
            f"the {passage.target} does not depend on the {passage.source}",
            "choose --of behind --wrt; look for .detach() or torch.no_grad() between them",
        )
    start = passage.source.name if passage.source.kind == "module-input" else "(input)"
    kind = _kind(passage.model, passage.source.name)
    cuts = [Cut(start, kind if start != "(input)" else "—", taps.sources)]
    total, through = _paths(taps.target, taps.sources)
    nodes: list[Any] = [None]
    for cut in seen:
        node = cut.tensors[0].grad_fn
        if node is None or through.get(node) != total:
            continue
        previous = _same_point(node, nodes, taps.sources)
        if previous is not None:
            cuts[previous] = Cut(cut.name, cut.kind, cuts[previous].tensors)
        else:
            cuts.append(cut)
            nodes.append(node)
    return cuts, taps.target


def _mark(label: str, module: nn.Module, args: Any, kwargs: Any, seen: list[Cut]) -> Any:
    """Give the module a copy of its first floating-point input, and remember where that came from."""
    for index, value in enumerate(args):
        if isinstance(value, Tensor) and value.is_floating_point():
            mark = value.clone()
            seen.append(Cut(label, type(module).__name__, [mark]))
            # The module may change its input in place: it gets a copy of the mark.
            return (*args[:index], mark.clone(), *args[index + 1 :]), kwargs
    for key, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            mark = value.clone()
            seen.append(Cut(label, type(module).__name__, [mark]))
            return args, {**kwargs, key: mark.clone()}
    return None


def _kind(model: nn.Module, name: str) -> str:
    return type(dict(model.named_modules()).get(name, model)).__name__


def _paths(target: Tensor, sources: list[Tensor]) -> tuple[int, dict[Any, int]]:
    """(paths from target to the sources, paths through each node of the graph)."""
    order: list[Any] = []
    visited: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(target.grad_fn, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in visited:
            visited.add(node)
            stack.append((node, True))
            stack.extend((n, False) for n, _ in node.next_functions if n is not None)
    leaves = {id(x) for x in sources}
    down: dict[Any, int] = {}
    for node in order:  # leaves first
        variable = getattr(node, "variable", None)
        reached = int(id(variable) in leaves) if variable is not None else 0
        down[node] = reached + sum(down[n] for n, _ in node.next_functions if n is not None)
    up = dict.fromkeys(order, 0)
    up[target.grad_fn] = 1
    for node in reversed(order):
        for following, _ in node.next_functions:
            if following is not None:
                up[following] += up[node]
    return down[target.grad_fn], {node: up[node] * down[node] for node in order}


def _same_point(node: Any, known: list[Any], sources: list[Tensor]) -> int | None:
    """Index of the known cut from which only reorderings lead to ``node``; 0: the source."""
    while True:
        (following,) = [n for n, _ in node.next_functions if n is not None][:1] or (None,)
        if following is None:
            return None
        if following in known:
            return known.index(following)
        variable = getattr(following, "variable", None)
        if variable is not None:
            return 0 if len(sources) == 1 and variable is sources[0] else None
        if following.name() not in _REORDERING:
            return None
        node = following


def _check(steps: list[Jacobian], whole: Jacobian) -> float:
    generator = torch.Generator().manual_seed(0)
    u_SM = torch.randn(whole.count, whole.rows, generator=generator).to(whole.device, whole.dtype)
    straight_SN = whole.vjp(u_SM)
    for op in reversed(steps):
        u_SM = op.vjp(u_SM)
    scale_S = torch.linalg.vector_norm(straight_SN, dim=1)
    error_S = torch.linalg.vector_norm(u_SM - straight_SN, dim=1)
    return float(torch.where(scale_S > 0, error_S / scale_S, error_S).max())
