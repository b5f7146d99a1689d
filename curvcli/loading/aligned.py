"""Targets brought into the shape of the outputs that they are compared with."""

from torch import Tensor

from curvcli.errors import DataError


def aligned(outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    """Targets in the shape and dtype of the outputs; only axes of length 1 may differ."""
    if outputs.shape != targets.shape:
        labels = not targets.is_floating_point() and targets.shape == outputs.shape[:-1]
        if labels and outputs.shape[-1] > 1:
            raise DataError(
                f"{name} compares numbers, and the targets are labels: outputs {list(outputs.shape)}, "
                f"targets {list(targets.shape)} of whole numbers",
                f"for {outputs.shape[-1]} classes use --loss cross_entropy",
            )
        squeezed = [s for s in outputs.shape if s != 1], [s for s in targets.shape if s != 1]
        if squeezed[0] != squeezed[1]:
            raise DataError(
                f"{name} needs outputs and targets of one shape, found {list(outputs.shape)} and "
                f"{list(targets.shape)}",
                "broadcasting would silently compare every output with every target",
            )
        targets = targets.reshape(outputs.shape)
    return targets.to(outputs.dtype)
