"""The walk over nested containers: what is done alike to every tensor in them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


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


def take(data: Any, samples: slice | list[int]) -> Any:
    if isinstance(data, Tensor):
        return data[samples]
    if isinstance(data, dict):
        return {key: take(value, samples) for key, value in data.items()}
    if isinstance(data, tuple | list):
        return type(data)(take(value, samples) for value in data)
    return data


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
