"""How far weights moved between two checkpoints of one network."""

from torch import Tensor, nn

from curvcli.linalg.ranks import ALONE, Ranks
from curvcli.linalg.vectors import double
from curvcli.objective.objective import Objective

STILL = 1e-7
"""A parameter that moves by less of its size, about one unit in the last place of float32, stands still."""


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all real parameters on the CPU, frozen ones too."""
    return {
        name: p.detach().clone().cpu()
        for name, p in model.named_parameters()
        if p.is_floating_point()
    }


def held_weights(objective: Objective) -> dict[str, Tensor]:
    """`weights_of`, or what this process holds of those of θ where they are divided."""
    if not objective.divided:
        return weights_of(objective.model)
    theta_N = objective.flat().cpu()
    return {held.name: theta_N[held.own] for held in objective.tensors}


def moved(
    before: dict[str, Tensor], after: dict[str, Tensor], ranks: Ranks = ALONE
) -> dict[str, float]:
    """‖Δθ‖/‖θ‖ of each parameter that both have; ‖Δθ‖ where θ was zero.

    Args:
        before: the parameters by name.
        after: the same later.
        ranks: the processes that hold parts of them.

    >>> import torch
    >>> moved({"w": torch.ones(4)}, {"w": torch.full((4,), 1.5)})
    {'w': 0.5}
    """
    found = {}
    for name, old in before.items():
        if name in after and after[name].shape == old.shape:
            wide_N = double(old).reshape(-1)
            size = float(ranks.norm(wide_N))
            distance = float(ranks.norm(double(after[name]).reshape(-1) - wide_N))
            found[name] = distance / size if size else distance
    return found


def still(ways: dict[str, float]) -> list[str]:
    """Parameters that do not move. A bias alone is none: before a normalisation it has no gradient.

    >>> still({"a.weight": 0.0, "a.bias": 0.1, "b.weight": 0.1, "b.bias": 0.0})
    ['a.weight']
    """
    found = [name for name, way in ways.items() if way < STILL]
    moving = {name.rpartition(".")[0] for name in ways if name not in found}
    return [
        name
        for name in found
        if name.rpartition(".")[2] != "bias" or name.rpartition(".")[0] not in moving
    ]
