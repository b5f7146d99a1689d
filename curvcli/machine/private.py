"""Every private name of torch that its releases may take away, with what is done without it: the same, more slowly."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def transformed(unknown: bool = True) -> bool:
    """Whether a function transform (`torch.func`) is under way; ``unknown`` where that cannot be told."""
    try:
        return torch._C._functorch.peek_interpreter_stack() is not None
    except AttributeError:
        return unknown


def outside_transforms(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, silent inside `torch.func`'s transforms, where a tensor stands for many and has no values."""

    @wraps(hook)
    def careful(*args: Any, **kwargs: Any) -> Any:
        return None if transformed(unknown=False) else hook(*args, **kwargs)

    return careful


def will_run(node: Any) -> bool:
    """Whether the backward pass that is under way comes to this node; yes, where that cannot be told."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (AttributeError, RuntimeError):  # a leaf is no node that can be asked about
        return True


def children(spec: Any) -> list[Any]:
    """The parts of a `TreeSpec`, whose attribute became a method."""
    found = spec.children() if hasattr(spec, "children") else spec.children_specs
    return list(found)


@contextmanager
def quiet_batching() -> Iterator[None]:
    """No warnings, from threads that Python does not filter, about operations that are batched one by one."""
    switch = getattr(torch._C._functorch, "_set_vmap_fallback_warning_enabled", lambda _: None)
    switch(False)
    try:
        yield
    finally:
        switch(True)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The length of each tensor, flat."""
    try:
        lengths = torch._foreach_norm(list(tensors))
    except AttributeError:
        lengths = tuple(torch.linalg.vector_norm(t) for t in tensors)
    return torch.stack(lengths)
