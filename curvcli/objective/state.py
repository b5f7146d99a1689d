"""What modules keep from one call to the next, and how every call starts from the same."""

import copy
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.machine.memory import not_of_memory

Place = tuple[str, str]
"""Name of a module, and of its attribute or buffer."""

# An attribute of networks that keep state: what each call starts from, by `Place`.
STARTS = "starts_from"
# What torch itself keeps in a module.
_INTERNAL = frozenset(vars(nn.Module())) | {STARTS}
# The value of an attribute that is not there; the same object after any copy.
_ABSENT = ...
_CONTAINERS = (list, tuple, dict, set, deque)
# A cache holds a list of layers' caches, which hold tensors.
_DEEP = 4


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
        elif _is_record(value) and type(getattr(owner, name, None)) is type(value):
            # Several modules may share the object: it is filled again, not replaced.
            vars(getattr(owner, name)).update(vars(_copy(value)))
        else:
            setattr(owner, name, _copy(value))


def _attributes(model: nn.Module) -> dict[Place, Any]:
    """Copies of all buffers and attributes that hold tensors, numbers, or containers and objects that hold such."""
    found: dict[Place, Any] = {}
    for path, module in model.named_modules():
        own: dict[str, Any] = {
            name: value for name, value in vars(module).items() if name not in _INTERNAL
        }
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            own |= module._buffers.items()
        for name, value in own.items():
            try:
                if _is_plain(value):
                    found[path, name] = _copy(value)
            except (
                Exception
            ) as error:  # containers of a library's own may refuse to be copied or filled
                not_of_memory(error)
    return found


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(v, depth + 1) for v in value.values())
    if isinstance(value, _CONTAINERS):
        return all(_is_plain(v, depth + 1) for v in value)
    if _is_record(value):
        return depth < _DEEP
    return value is None or isinstance(value, Tensor | int | float | complex | str)


def _is_record(value: Any) -> bool:
    """Whether it is an object of an ordinary Python class that is there to hold values."""
    ordinary = getattr(type(value), "__new__", None) is object.__new__
    return ordinary and hasattr(value, "__dict__") and not callable(value)


def _copy(value: Any, depth: int = 0) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        found = copy.copy(value)  # with what a subclass has of its own, such as a default
        found.update((k, _copy(v, depth + 1)) for k, v in value.items())
        return found
    if isinstance(value, deque):
        return deque((_copy(v, depth + 1) for v in value), value.maxlen)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copy(v, depth + 1) for v in value))
    if isinstance(value, _CONTAINERS):
        return type(value)(_copy(v, depth + 1) for v in value)
    if _is_record(value):
        record = object.__new__(type(value))
        # What is no value (a function, a module that owns it) is left as it is.
        vars(record).update(
            (k, _copy(v, depth + 1)) for k, v in vars(value).items() if _is_plain(v, depth + 1)
        )
        return record
    return value


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
    if _is_record(a):
        return _same(vars(a), vars(b))
    return bool(a == b)
