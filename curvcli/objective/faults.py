"""Which module makes a loss random, or not finite: the outputs of all modules are watched."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.linalg.vectors import double
from curvcli.machine.containers import tensors_in
from curvcli.machine.private import outside_transforms
from curvcli.objective.batch import Batch
from curvcli.objective.network import evaluation

_TARGET = "the target"

Terms = Callable[[nn.Module, Any], object]
"""(model, batch data) -> anything: the loss, evaluated for what the modules do meanwhile."""


def why_not_finite(value: float, model: nn.Module, batches: Sequence[Batch], terms: Terms) -> str:
    """Name the first module whose output is not finite.

    Args:
        value: of the loss.
        model: whose weights are finite.
        batches: what the loss runs over.
        terms: the loss.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and not all(
                bool(torch.isfinite(t).all()) for t in tensors_in(output) if t.is_floating_point()
            ):
                found.append(name)

        return hook

    for batch in batches:
        _with_hooks(watch, model, batch, terms)
    fault = fault_in_data(batches)
    if fault is not None:
        return f"the loss is {value}: in the data, {fault}"
    where = f", first in the output of {found[0]!r}" if found else " in the loss itself"
    return f"the loss is {value} although weights and data are finite{where}"


def fault_in_data(batches: Sequence[Batch], harmless: bool = False) -> str | None:
    """Which input is NaN or Inf, and in which sample; NaN first, since masks are -Inf on purpose.

    Args:
        batches: of the objective.
        harmless: loss and gradients are finite: -Inf, and gaps in the targets, are meant then.
    """
    for test in (torch.isnan, torch.isposinf if harmless else torch.isinf):
        first = 0
        for batch in batches:
            for name, tensor in _named(batch):
                if harmless and name == _TARGET:
                    continue
                bad = test(tensor)
                if bool(bad.any()):
                    place = [int(i) for i in bad.nonzero()[0]]
                    value = float(tensor[tuple(place)])
                    sample = f" of sample {first + place[0]}" if place else ""
                    within = f", entry {place[1:]}" if place[1:] else ""
                    more = int(bad.sum()) - 1
                    rest = f" (and {more} more)" if more else ""
                    return f"{name}{sample} is {value}{within}{rest}"
            first += batch.size
    return None


def _named(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors of a batch, by what the data calls them."""
    arranged = isinstance(batch.data, tuple) and len(batch.data) == 3
    if arranged and isinstance(batch.data[0], tuple) and isinstance(batch.data[1], Mapping):
        positional, keywords, targets = batch.data
        names = batch.names or tuple(
            f"input {i + 1}" if len(positional) > 1 else "the input" for i in range(len(positional))
        )
        parts = [*zip(names, positional, strict=True), *keywords.items(), (_TARGET, targets)]
    else:
        parts = [("the batch", batch.data)]
    for name, value in parts:
        for tensor in tensors_in(value):
            if tensor.is_floating_point():
                yield name if name.startswith("the ") else repr(name), tensor


def random_modules(model: nn.Module, batch: Batch, terms: Terms) -> list[str]:
    """Names of the modules whose first differing output shows randomness; what is inside a module ends before it."""
    runs: list[dict[str, float]] = []
    for _ in range(2):
        seen: dict[str, float] = {}

        def watch(name: str, seen: dict[str, float] = seen) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                tensors = [double(t).sum() for t in tensors_in(output) if t.is_floating_point()]
                seen.setdefault(name, float(sum(tensors)))

            return hook

        _with_hooks(watch, model, batch, terms)
        runs.append(seen)
    differing = [n for n in runs[0] if runs[0][n] != runs[1].get(n)]
    # What follows a random module differs too: name the first, and other modules of its kind.
    if not differing:
        return ["(the loss function itself)"]
    kinds = {n: type(m) for n, m in _modules(model)}
    # What holds a random module differs because of it.
    own = [n for n in differing if not any(d.startswith(f"{n}.") for d in differing)]
    return [n for n in own if kinds[n] is kinds[differing[0]]]


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n or type(m).__name__, m) for n, m in model.named_modules()]


def _with_hooks(
    watch: Callable[[str], Callable[..., None]], model: nn.Module, batch: Batch, terms: Terms
) -> None:
    handles = [m.register_forward_hook(outside_transforms(watch(n))) for n, m in _modules(model)]
    try:
        with torch.no_grad(), evaluation(model):
            terms(model, batch.data)
    finally:
        for handle in handles:
            handle.remove()
