"""The walk over nested containers: what is done alike to every tensor in them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def tensors_in(data: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers and objects with attributes."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from tensors_in(value)
    elif isinstance(data, tuple | list):
        for value in data:
            yield from tensors_in(value)


def mapped(data: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers, of the same types, with ``change`` of everything in them that is no container."""
    if isinstance(data, Mapping):
        changed = {key: mapped(value, change) for key, value in data.items()}
        if type(data) is dict:
            return changed
        other = copy.copy(data)
        for key, value in changed.items():
            other[key] = value  # type: ignore[index]
        return other
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(mapped(value, change) for value in data))
    if type(data) in (tuple, list):
        return type(data)(mapped(value, change) for value in data)
    return change(data)


def take(data: Any, samples: slice | list[int]) -> Any:
    """The samples of these numbers, of every tensor."""
    return mapped(data, lambda value: value[samples] if isinstance(value, Tensor) else value)


def fresh(data: Any) -> Any:
    """The same tensors in containers of their own: who takes an entry out of them takes it out of a copy."""
    return mapped(data, lambda value: value)


def cast(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """On ``device``; floating-point numbers in ``dtype``, complex ones in its precision, others as they are."""
    if tensor.is_complex():
        return tensor.to(device=device, dtype=dtype.to_complex())
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def joined(parts: Sequence[Any]) -> Any | None:
    """The samples of all parts behind one another, in the containers of the first.

    None where the containers, the tensors' kinds and shapes, or anything that is no tensor differ.
    """
    try:
        return _joined(parts)
    except (ValueError, RuntimeError):
        return None


def _joined(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        if len({part.dtype for part in parts}) > 1:
            raise ValueError("kinds differ")
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        if any(part.keys() != first.keys() for part in parts):
            raise ValueError("keys differ")
        values = iter([_joined([part[key] for part in parts]) for key in first])
        other = copy.copy(first)
        for key in first:
            other[key] = next(values)  # type: ignore[index]
        return other
    if isinstance(first, tuple | list):
        together = [_joined(column) for column in zip(*parts, strict=True)]
        return type(first)(*together) if hasattr(first, "_fields") else type(first)(together)
    if any(part != first for part in parts):
        raise ValueError("values differ")
    return first


def move(data: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Tensors in nested containers on ``device``, floating-point ones in ``dtype``."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return cast(value, device, dtype)
        if not isinstance(value, str | bytes) and callable(getattr(value, "to", None)):
            return value.to(device)
        return value

    return mapped(data, moved)


def samples_of(data: Any) -> int | None:
    """Samples in a batch of an objective: the first axis that all its tensors share; None where they share none."""
    sizes = {t.shape[0] if t.dim() else 0 for t in tensors_in(data)}
    return sizes.pop() or None if len(sizes) == 1 else None
