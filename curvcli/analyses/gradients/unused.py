"""Layers that the loss does not depend on: heads of a library's network that nobody uses."""

from collections.abc import Sequence

import torch

from curvcli.analyses.gradients.result import LayerSignal
from curvcli.objective.objective import Objective

# Samples on which the loss is compared.
_SAMPLES = 8


def unused(objective: Objective, layers: Sequence[LayerSignal]) -> list[str]:
    """Of the layers that no gradient comes back to, those whose weights can be moved without changing the loss at all.

    What is detached behind a layer gives it no gradient either, and yet the loss depends on it.
    """
    modules = dict(objective.model.named_modules())
    own = {
        layer.name: {id(p) for p in modules[layer.name].parameters()}
        for layer in layers
        if layer.role == "unreached" and layer.weight_gradient_rms == 0 and layer.name in modules
    }
    known = {id(p) for p in objective.parameters}
    own = {name: ids for name, ids in own.items() if ids <= known}
    if not own:
        return []
    piece = next(iter(objective.batches[0].pieces(_SAMPLES)))

    def loss(moved: set[int]) -> float:
        step_N = objective.flatten(
            [
                p.detach().abs() + 1 if id(p) in moved else torch.zeros_like(p)
                for p in objective.parameters
            ]
        )
        with torch.no_grad(), objective.moved(step_N):
            return float(objective.sum_of(piece))

    before = loss(set())
    if loss(set().union(*own.values())) == before:
        return list(own)
    return [name for name, ids in own.items() if loss(ids) == before]
