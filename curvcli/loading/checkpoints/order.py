"""Which parameter each state of an optimizer belongs to: by names where they were kept, otherwise by evidence."""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvcli.errors import CheckpointError, some

Shapes = Mapping[str, tuple[int, ...]]
Order = tuple[str, ...]
"""Names of the parameters, group after group."""
Gradient = Callable[[], Mapping[str, Tensor]]
"""∇L by parameter."""

# What training programs leave out of weight decay: biases, and the weights of normalisations.
_NOT_DECAYED = re.compile(r"bias|norm|(^|\.)ln(_?\w+)?(\.|$)", re.IGNORECASE)
# More groups are not tried in all their orders, and no more ways of leaving parameters out.
_FEW = 4
_WAYS = 64
# The average of gradients, beside that of their squares.
_FIRST = "exp_avg"
# Correlation of log v with log g² and of m with g, on average, that an order must have, and by which it must lead.
_CORRELATED, _AHEAD = 0.3, 0.1


def keys_of(
    groups: list[dict[str, Any]],
    states: dict[Any, dict[str, Any]],
    kind: str,
    shapes: Shapes,
    path: Path,
    notes: list[str],
    gradient: Gradient | None = None,
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """(key of the state, group) of each parameter that the optimizer was given.

    Args:
        groups: of the optimizer.
        states: by key.
        kind: name of the tensor in a state that has the parameter's shape.
        shapes: of the model's parameters, in their order.
        path: the file.
        notes: told which order was taken and why, where names were not kept.
        gradient: tells several orders apart, where ``kind`` is a mean of its squares.

    Raises:
        CheckpointError: they cannot be told, or there are not as many.
    """
    listed = [(key, group) for group in groups for key in group["params"]]
    names = [n for group in groups for n in group.get("param_names", ())]
    if len(names) != len(listed) and all(isinstance(key, str) for key, _ in listed):
        names = [str(key) for key, _ in listed]
    if len(names) == len(listed):
        by_name = dict(zip(map(_plain, names), listed, strict=True))
        absent = [n for n in shapes if n not in by_name]
        if absent and (len(absent) == len(shapes) or not shapes.keys() >= by_name.keys()):
            raise CheckpointError(
                f"{path.name} knows nothing of {some(absent)}",
                "pass the optimizer's state of this very model",
            )
        return {n: by_name[n] for n in shapes if n in by_name}
    second = {key: states[key][kind] for key, _ in listed if kind in states.get(key, {})}

    def fits(order: Sequence[str]) -> bool:
        return len(order) == len(listed) and all(
            key not in second or tuple(second[key].shape) == shapes[name]
            for name, (key, _) in zip(order, listed, strict=True)
        )

    known = [tuple(second[key].shape) if key in second else None for key, _ in listed]
    fitting: dict[Order, str] = {}
    for ways in (_by_decay, _consecutive, _with_a_gap, lambda g, s: _thinned(g, s, known)):
        if not fitting:
            for order, why in ways(groups, shapes):
                if fits(order):
                    fitting.setdefault(order, why)
    if len(fitting) > 1 and gradient is not None:
        fitting = _supported(fitting, [states.get(key, {}) for key, _ in listed], kind, gradient())
    if len(fitting) != 1:
        found = (
            f"{len(listed)} parameters, the model {len(shapes)}"
            if len(listed) != len(shapes)
            else "parameters in an order that cannot be told from their shapes"
        )
        raise CheckpointError(
            f"{path.name} has {found}",
            "make the optimizer with model.named_parameters(), so that its state keeps their names",
        )
    ((order, why),) = fitting.items()
    if len(groups) > 1 or len(order) < len(shapes):
        what = f"{len(groups)} groups" if len(groups) > 1 else f"{len(order)} parameters"
        notes.append(f"{path.name} keeps no names; its {what} are taken as {why}")
    return dict(zip(order, listed, strict=True))


def _by_decay(groups: Sequence[Mapping[str, Any]], shapes: Shapes) -> Iterator[tuple[Order, str]]:
    """The orders of programs that divide parameters by weight decay, where numbers and decay of the groups agree."""
    decayed = [bool(group.get("weight_decay")) for group in groups]
    if sorted(decayed) != [False, True]:
        return
    ways: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("with weight decay where there are two axes or more", lambda n: len(shapes[n]) >= 2),
        (
            "with weight decay but for biases and normalisations",
            lambda n: not _NOT_DECAYED.search(n),
        ),
    )
    for (why, decays), names in itertools.product(ways, (list(shapes), sorted(shapes))):
        parts = [[n for n in names if decays(n) == wanted] for wanted in decayed]
        if all(len(p) == len(g["params"]) for p, g in zip(parts, groups, strict=True)):
            yield (*parts[0], *parts[1]), why


def _consecutive(
    groups: Sequence[Mapping[str, Any]], shapes: Shapes
) -> Iterator[tuple[Order, str]]:
    """Matrices and vectors apart, and parts of the model one after the other, in any order of the groups."""
    matrices = [n for n, s in shapes.items() if len(s) >= 2]
    vectors = [n for n, s in shapes.items() if len(s) < 2]
    if len(groups) > 1:
        yield (*matrices, *vectors), "matrices before vectors"
        yield (*vectors, *matrices), "vectors before matrices"
    numbers = range(len(groups))
    for chosen in itertools.permutations(numbers) if len(groups) <= _FEW else [tuple(numbers)]:
        rest, cut = iter(shapes), dict[int, list[str]]()
        for index in chosen:
            cut[index] = list(itertools.islice(rest, len(groups[index]["params"])))
        order = tuple(name for index in numbers for name in cut[index])
        if len(order) == len(shapes):
            yield order, "consecutive parts of the model"


def _with_a_gap(groups: Sequence[Mapping[str, Any]], shapes: Shapes) -> Iterator[tuple[Order, str]]:
    """The orders of all parameters but some modules in a row, which the optimizer was not given."""
    names, count = list(shapes), sum(len(group["params"]) for group in groups)
    gap = len(names) - count
    if not 0 < gap < len(names):
        return
    for at in range(count + 1):
        out, rest = names[at : at + gap], [*names[:at], *names[at + gap :]]
        if not _whole_modules(out, rest):
            continue
        kept = {n: shapes[n] for n in rest}
        for ways in (_by_decay, _consecutive):
            for order, why in ways(groups, kept):
                told = f"{why}, " if len(groups) > 1 else ""
                yield order, f"{told}all but {some(out)}"


def _thinned(
    groups: Sequence[Mapping[str, Any]],
    shapes: Shapes,
    known: Sequence[tuple[int, ...] | None],
) -> Iterator[tuple[Order, str]]:
    """The parameters of one group in the model's order, some left out here and there; too many ways are none."""
    names = list(shapes)
    if len(groups) != 1 or len(known) >= len(names):
        return
    found: list[Order] = []
    # Of each beginning of the group: where it ends in the model, and which parameters it has.
    begun: list[tuple[int, Order]] = [(0, ())]
    while begun and len(found) <= _WAYS and len(begun) <= _WAYS * len(names):
        at, taken = begun.pop()
        if len(taken) == len(known):
            found.append(taken)
            continue
        shape = known[len(taken)]
        last = len(names) - (len(known) - len(taken))
        begun += [
            (i + 1, (*taken, names[i]))
            for i in range(at, last + 1)
            if shape is None or shapes[names[i]] == shape
        ]
    if begun:
        return
    left = {order: [n for n in names if n not in order] for order in found}
    whole = [order for order in found if _whole_modules(left[order], order)]
    for order in whole or found:
        yield order, f"all but {some(left[order])}"


def _whole_modules(out: Sequence[str], rest: Sequence[str]) -> bool:
    """Whether no module has parameters in both."""
    return not {n.rpartition(".")[0] for n in out} & {n.rpartition(".")[0] for n in rest}


def _supported(
    orders: Mapping[Order, str],
    states: Sequence[Mapping[str, Any]],
    kind: str,
    gradient: Mapping[str, Tensor],
) -> dict[Order, str]:
    """The one order in which the optimizer's averages go with the gradient; empty: none, or more than one."""
    # Where all orders agree there is nothing to learn.
    open_ = [i for i, names in enumerate(zip(*orders, strict=True)) if len(set(names)) > 1]
    scores = {}
    for order in orders:
        pairs = [
            (states[i], gradient[order[i]].double().cpu().flatten())
            for i in open_
            if kind in states[i] and order[i] in gradient
        ]
        seconds = [(s[kind].double().flatten().log(), g.square().log()) for s, g in pairs]
        firsts = [(s[_FIRST].double().flatten(), g) for s, g in pairs if _FIRST in s]
        found = [_correlation(part) for part in (seconds, firsts) if part]
        scores[order] = sum(found) / len(found) if found else 0.0
    first, second, *_ = sorted(scores, key=lambda order: -scores[order])
    if scores[first] < _CORRELATED or scores[first] - scores[second] < _AHEAD:
        return {}
    return {
        first: f"{orders[first]}: of {len(orders)} orders that fit, the one in which averages go with the gradient "
        f"(correlation {scores[first]:.2f}, the next {scores[second]:.2f})"
    }


def _correlation(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Pearson's, over the entries of all tensors that are finite in both."""
    both = torch.stack([torch.cat(list(part)) for part in zip(*pairs, strict=True)])
    both = both[:, torch.isfinite(both).all(0)]
    found = float(torch.corrcoef(both)[0, 1]) if both.shape[1] > 2 else 0.0
    return found if math.isfinite(found) else 0.0


def _plain(name: str) -> str:
    """The name without what wrappers put before it."""
    for wrapper in ("module.", "_orig_mod."):
        name = name.removeprefix(wrapper)
    return name
