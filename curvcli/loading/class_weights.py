"""Weights of classes in a loss."""

import torch
from torch import Tensor

from curvcli.errors import DataError


def class_weights(weight: list[float] | None, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """One weight for each class.

    Raises:
        DataError: there are others than classes, or the targets are no labels.
    """
    if weight is None:
        return None
    classes = outputs.shape[1] if targets.dim() < outputs.dim() == 2 else outputs.shape[-1]
    if outputs.dim() > 2 and tuple(targets.shape) == (outputs.shape[0], *outputs.shape[2:]):
        classes = outputs.shape[1]
    if targets.is_floating_point() or not isinstance(weight, list) or len(weight) != classes:
        raise DataError(
            f"weight needs {classes} numbers, one for each class, and integer labels; found {weight!r}",
            "write --loss-arg 'weight=[1.0, 2.0]'",
        )
    return torch.tensor(weight, dtype=outputs.dtype, device=outputs.device)
