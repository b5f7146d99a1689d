"""Which module makes a loss random, or not finite: the outputs of all leaf modules are watched."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from curvcli.linalg.vectors import double
from curvcli.machine.containers import tensors_in
from curvcli.objective.batch import Batch
from curvcli.objective.network import evaluation

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
    data_is_finite = all(
        bool(torch.isfinite(t).all())
        for batch in batches
        for t in tensors_in(batch.data)
        if t.is_floating_point()
    )
    if not data_is_finite:
        return f"the loss is {value}: the data contains NaN or Inf"
    where = f", first in the output of {found[0]!r}" if found else " in the loss itself"
    return f"the loss is {value} although weights and data are finite{where}"


def random_modules(model: nn.Module, batch: Batch, terms: Terms) -> list[str]:
    """Names of the leaf modules whose first differing output shows randomness."""
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
    kinds = {n: type(m) for n, m in _leaves(model)}
    return [n for n in differing if kinds[n] is kinds[differing[0]]]


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n or type(m).__name__, m) for n, m in model.named_modules() if not list(m.children())]


def _with_hooks(
    watch: Callable[[str], Callable[..., None]], model: nn.Module, batch: Batch, terms: Terms
) -> None:
    handles = [m.register_forward_hook(watch(n)) for n, m in _leaves(model)]
    try:
        with torch.no_grad(), evaluation(model):
            terms(model, batch.data)
    finally:
        for handle in handles:
            handle.remove()
