"""What modules keep from one call to the next, and how every call starts from the same."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Place = tuple[str, str]
"""Name of a module, and of its attribute or buffer."""

# An attribute of networks that keep state: what each call starts from, by `Place`.
STARTS = "starts_from"
# What torch itself keeps in a module.
_INTERNAL = frozenset(vars(nn.Module())) | {STARTS}
# The value of an attribute that is not there; the same object after any copy.
_ABSENT = ...
_CONTAINERS = (list, tuple, dict, set, deque)


def kept_between_calls(model: nn.Module, call: Callable[[], object]) -> dict[Place, Any]:
    """What differs after a second equal call, with the values from before the first one.

    What is the same after both is no state: a cache, or a record of what was computed. Statistics of BatchNorm are not
    read by the calls that write them.

    Args:
        model: is left as it was.
        call: runs it, the same each time.
    """
    before = _attributes(model)
    call()
    once = _attributes(model)
    places = before.keys() | once.keys()
    changed = {
        place: before.get(place, _ABSENT)
        for place in sorted(places)
        if not _same(before.get(place, _ABSENT), once.get(place, _ABSENT))
    }
    if not changed:
        return {}
    call()
    twice = _attributes(model)
    _set(model, changed)
    return {
        place: value
        for place, value in changed.items()
        if not _same(once.get(place, _ABSENT), twice.get(place, _ABSENT))
    }


def restart(model: nn.Module) -> None:
    """Let a network that keeps state start from what it was given."""
    starts: Mapping[Place, Any] | None = getattr(model, STARTS, None)
    if starts:
        _set(model, starts)


def _set(model: nn.Module, values: Mapping[Place, Any]) -> None:
    for (module, name), value in values.items():
        owner = model.get_submodule(module)
        if name in owner._buffers:
            buffer = owner._buffers[name]
            given = value if buffer is None or value is None else value.to(buffer)
            owner._buffers[name] = _copy(given)
        elif value is _ABSENT:
            vars(owner).pop(name, None)
        else:
            setattr(owner, name, _copy(value))


def _attributes(model: nn.Module) -> dict[Place, Any]:
    """Copies of all buffers and attributes that hold tensors, numbers, or containers of them."""
    found: dict[Place, Any] = {}
    for path, module in model.named_modules():
        own: dict[str, Any] = {
            name: value for name, value in vars(module).items() if name not in _INTERNAL
        }
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            own |= module._buffers.items()
        found |= {(path, name): _copy(value) for name, value in own.items() if _is_plain(value)}
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, _CONTAINERS):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, Tensor | int | float | complex | str)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return type(value)((k, _copy(v)) for k, v in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_copy, value))
    return type(value)(map(_copy, value)) if isinstance(value, _CONTAINERS) else value


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return torch.equal(a, b) or (
            a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num())
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
