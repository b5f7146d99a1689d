"""Frozen data, and what is done alike to everything in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Frozen data, passed to the loss as it is.

    Args:
        data: tensors in tuples, lists and dicts, or any object the objective understands.
        size: samples in it.
        splittable: whether every tensor's first dimension runs over the samples, so that a slice of
            the batch is a batch.
    """

    data: Any
    size: int
    splittable: bool = True

    def pieces(self, samples: int) -> Iterator["Batch"]:
        """Consecutive slices of at most ``samples`` samples."""
        if not self.splittable or samples >= self.size:
            yield self
            return
        for first in range(0, self.size, samples):
            last = min(first + samples, self.size)
            yield Batch(_slice(self.data, slice(first, last)), last - first)

    def take(self, samples: Sequence[int]) -> "Batch":
        """The samples of these numbers, in that order; the batch must be splittable."""
        return Batch(_slice(self.data, list(samples)), len(samples))


def _slice(data: Any, samples: slice | list[int]) -> Any:
    if isinstance(data, Tensor):
        return data[samples]
    if isinstance(data, dict):
        return {key: _slice(value, samples) for key, value in data.items()}
    if isinstance(data, tuple | list):
        return type(data)(_slice(value, samples) for value in data)
    return data


def tensors_in(data: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers and objects with attributes."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from tensors_in(value)
    elif isinstance(data, tuple | list):
        for value in data:
            yield from tensors_in(value)


def move(data: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Tensors in nested containers on ``device``, floating-point ones in ``dtype``."""
    if isinstance(data, Tensor):
        return data.to(device=device, dtype=dtype if data.is_floating_point() else None)
    if isinstance(data, dict):
        return {key: move(value, device, dtype) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(move(value, device, dtype) for value in data))
    if isinstance(data, tuple | list):
        return type(data)(move(value, device, dtype) for value in data)
    if not isinstance(data, str | bytes) and callable(getattr(data, "to", None)):
        return data.to(device)
    return data
