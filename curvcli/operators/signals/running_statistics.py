"""The running statistics of BatchNorm against those of the data.

Shapes: ``C`` channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.linalg.vectors import double
from curvcli.machine.private import outside_transforms
from curvcli.objective.objective import Objective


@dataclass(frozen=True)
class RunningStatistics:
    """A BatchNorm's running statistics against those of the data."""

    name: str
    variance_ratio: float
    """Median over channels: variance of the data over the running one."""
    shift: float
    """RMS over channels: distance of the means in running standard deviations."""


@contextmanager
def watched_norms(
    objective: Objective,
) -> Iterator[list[tuple[str, nn.modules.batchnorm._BatchNorm, list[Tensor]]]]:
    """The inputs of every BatchNorm that normalises by running statistics it has gathered."""
    found: list[tuple[str, nn.modules.batchnorm._BatchNorm, list[Tensor]]] = []
    handles = []
    for name, module in _by_statistics(objective.model):
        if not int(module.num_batches_tracked or 0):
            continue
        sums: list[Tensor] = []
        found.append((name, module, sums))
        handles.append(module.register_forward_pre_hook(outside_transforms(_summing(sums))))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def has_statistics(model: nn.Module) -> bool:
    """Whether a BatchNorm normalises by running statistics, gathered or not."""
    return any(True for _ in _by_statistics(model))


def _by_statistics(
    model: nn.Module,
) -> Iterator[tuple[str, nn.modules.batchnorm._BatchNorm]]:
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.training:
            continue
        if module.running_var is not None and module.running_mean is not None:
            yield name, module


def _summing(sums: list[Tensor]) -> Any:
    """A hook that adds up count, Σx and Σx² by channel."""

    def hook(_module: nn.Module, inputs: Any) -> None:
        x = double(inputs[0].detach()).movedim(1, 0).flatten(1)
        parts = [torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)]
        for i, part in enumerate(parts):
            if len(sums) <= i:
                sums.append(part)
            else:
                sums[i] = sums[i] + part

    return hook


def compared(
    name: str, module: nn.modules.batchnorm._BatchNorm, sums: list[Tensor]
) -> RunningStatistics:
    """A BatchNorm against the sums of its inputs."""
    if not sums or module.running_mean is None or module.running_var is None:
        return RunningStatistics(name, 1.0, 0.0)
    mean_C = sums[1] / sums[0]
    variance_C = (sums[2] / sums[0] - mean_C.square()).clamp(min=0) + module.eps
    running_C = double(module.running_var) + module.eps
    shift_C = (mean_C - double(module.running_mean)) / running_C.sqrt()
    return RunningStatistics(
        name, float((variance_C / running_C).median()), float(shift_C.square().mean().sqrt())
    )
