"""A model and its data in float64: the reference for rounding, kinks and wrong derivatives."""

from typing import TypeVar

import torch
from torch import nn

from curvcli.machine.containers import move
from curvcli.machine.device import with_double
from curvcli.objective.batch import Batch
from curvcli.objective.network import copied

M = TypeVar("M", bound=nn.Module)


def in_double(model: M, batch: Batch, device: torch.device) -> tuple[M, Batch]:
    """A copy of ``model``, and ``batch``, in float64; on ``device``, or on the CPU where that has no float64.

    Raises:
        RuntimeError, TypeError, AttributeError, ValueError: the model cannot be copied.
    """
    device = with_double(device)
    data = move(batch.data, device, torch.float64)
    return copied(model).to(device).double(), Batch(data, batch.size, batch.splittable)
