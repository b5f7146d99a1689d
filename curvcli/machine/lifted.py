"""A network in float64 throughout: its own casts to float32, and constants that it keeps in float32, are lifted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}
_CASTS: dict[Any, Any] = {
    getattr(Tensor, narrow): getattr(Tensor, wide)
    for narrow, wide in (("float", "double"), ("cfloat", "cdouble"))
}


@contextmanager
def in_float64() -> Iterator[None]:
    """What is computed inside stays in float64.

    Networks are written for float32: they make constants by default, cast inputs and intermediate values, and keep
    tensors that are no buffers. With weights in float64 these would round the values between, or not fit to them.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Lifted():
            yield
    finally:
        torch.set_default_dtype(default)


class _Lifted(TorchFunctionMode):
    """Asks for float64 where float32 is asked for, and widens float32 where it meets float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation in the wider type."""
        kwargs = kwargs or {}
        # Operators are called by modes that look at them, of programs too, which are not lifted elsewhere.
        if isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if func is Tensor.view or (name.endswith("_") and not name.endswith("__")):
            return func(*args, **kwargs)  # bits, or a tensor that is written to, keep their type
        if name == "__setitem__" or "out" in kwargs:
            return func(*args, **kwargs)
        func = _CASTS.get(func, func)
        args = [_WIDER.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
        kwargs = {
            k: _WIDER.get(v, v) if isinstance(v, torch.dtype) else v for k, v in kwargs.items()
        }
        given = [*args, *kwargs.values()]
        kinds = {t.dtype for value in given for t in _tensors(value)}
        if kinds & set(_WIDER) and kinds & set(_WIDER.values()):
            args = [_widened(a) for a in args]
            kwargs = {k: _widened(v) for k, v in kwargs.items()}
        return func(*args, **kwargs)


def _tensors(value: Any) -> list[Tensor]:
    """The tensor, or those of a list."""
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, Tensor)]


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        wider = _WIDER.get(value.dtype)
        return value if wider is None else value.to(wider)
    if type(value) in (list, tuple):
        return type(value)(map(_widened, value))
    return value
