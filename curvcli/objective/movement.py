"""How far weights moved between two checkpoints of one network."""

from torch import Tensor, nn

from curvcli.linalg.vectors import double

STILL = 1e-7
"""A parameter that moves by less of its size, about one unit in the last place of float32, stands still."""


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all real parameters on the CPU, frozen ones too."""
    return {
        name: p.detach().clone().cpu()
        for name, p in model.named_parameters()
        if p.is_floating_point()
    }


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """‖Δθ‖/‖θ‖ of each parameter that both have; ‖Δθ‖ where θ was zero.

    >>> import torch
    >>> moved({"w": torch.ones(4)}, {"w": torch.full((4,), 1.5)})
    {'w': 0.5}
    """
    found = {}
    for name, old in before.items():
        if name in after and after[name].shape == old.shape:
            size = float(double(old).norm())
            distance = float((double(after[name]) - double(old)).norm())
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
