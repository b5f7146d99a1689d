"""How many directions features and weights use: what is left of a network's ability to learn something new."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from curvcli.linalg.vectors import double
from curvcli.machine.private import outside_transforms
from curvcli.objective.objective import Objective

# Samples (or tokens) whose features are looked at.
_ROWS = 2048
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def effective_rank(matrix: Tensor) -> float | None:
    """exp of the entropy of σ / Σσ (Roy & Vetterli, EUSIPCO 2007): k for k equal singular values; None of zero.

    >>> round(effective_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0]))), 6)
    2.0
    """
    values = torch.linalg.svdvals(double(matrix))
    total = float(values.sum())
    if not math.isfinite(total) or total <= 0:
        return None
    share = values / total
    return math.exp(-float(torch.xlogy(share, share).sum()))


def weight_ranks(objective: Objective, largest: int) -> dict[str, float]:
    """Effective rank of the weights of every linear and convolutional layer of at most so many, kernels as rows.

    Of divided weights only those of θ are looked at, tied ones once.
    """
    found = {}
    for name, weight in _divided(objective, largest) if objective.divided else _whole(objective):
        rank = effective_rank(weight.flatten(1)) if weight.numel() <= largest else None
        if rank is not None:
            found[name or "weight"] = rank
    return found


def _whole(objective: Objective) -> Iterator[tuple[str, Tensor]]:
    for name, module in objective.model.named_modules():
        if isinstance(module, _LINEAR):
            yield name, module.weight.detach()


def _divided(objective: Objective, largest: int) -> Iterator[tuple[str, Tensor]]:
    """Weights put together one after the other."""
    theta_N = objective.flat()
    for index, held in enumerate(objective.tensors):
        name, _, own = held.name.rpartition(".")
        linear = isinstance(objective.model.get_submodule(name), _LINEAR)
        if linear and own == "weight" and held.shape.numel() <= largest:
            yield name, objective.whole(theta_N, index)


def feature_rank(objective: Objective) -> float | None:
    """Effective rank of what enters the last linear layer, around its mean over the samples."""
    parts: list[Tensor] = []
    with _last_inputs(objective.model) as seen, torch.no_grad(), objective.evaluation():
        for batch in objective.batches:
            seen.clear()
            objective.terms(objective.model, batch.data)
            parts += seen
            if sum(map(len, parts)) >= _ROWS:
                break
    if len({part.shape[1] for part in parts}) != 1:
        return None
    together = torch.cat(parts)[:_ROWS]
    return effective_rank(together - together.mean(0)) if len(together) > 1 else None


@contextmanager
def _last_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of linear layers, as rows, in the order in which they are called."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() > 1:
            seen[:] = [double(inputs[0].detach().flatten(0, -2)[:_ROWS])]

    hook = outside_transforms(keep)
    handles = [
        m.register_forward_pre_hook(hook) for m in model.modules() if isinstance(m, nn.Linear)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
