"""Any operation with a tensor of the device among its arguments, or that makes one: where the fallback ends."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.device.second.memory import (
    NAME,
    DeviceError,
    device_tensor,
    host_tensor,
    refilled,
    strided,
)
from tests.device.second.operations import SPECIAL
from tests.device.second.watch import active, note

# These may have indices of the host.
_INDEXING = (
    "aten::index.Tensor",
    "aten::index_put",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
)
# A number, a shape or a success that only the device knows.
_READING = (
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique", "aten::unique_",
    "aten::equal", "aten::bincount", "aten::repeat_interleave.Tensor", "aten::_linalg_eigh", "aten::_linalg_svd",
    "aten::linalg_eig", "aten::linalg_lstsq", "aten::linalg_inv_ex", "aten::linalg_cholesky_ex",
)  # fmt: skip


def fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation with a tensor of the device among its arguments, or that makes one."""
    name = f"{op._schema.name}.{op._schema.overload_name}"
    for watch in active:
        watch.operations[op._schema.name] += 1
    if name.startswith(_READING):
        note("waiting", name)
    # Below: nothing of what is switched on for the program (functions, transforms, gradients) sees the CPU's kernels.
    with (
        torch._C._DisableFuncTorch(),
        torch._C.DisableTorchFunction(),
        torch._C._AutoDispatchBelowAutograd(),
    ):
        special = SPECIAL.get(name)
        return _computed(op, name, args, kwargs) if special is None else special(*args, **kwargs)


def _computed(op: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    pairs: list[tuple[Tensor, Tensor]] = []
    indexing = name.startswith(_INDEXING)

    def to_host(value: Any) -> Any:
        if isinstance(value, torch.Generator):
            raise DeviceError(f"{name}: a generator of the device is expected, not one of the host")
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if not isinstance(value, Tensor):
            return value
        if value.device.type == NAME:
            known = next((host for own, host in pairs if own is value), None)
            if known is None:
                known = host_tensor(value)
                pairs.append((value, known))
            return known
        # Numbers in tensors of the host may stand beside tensors of the device.
        if value.dim() and (not indexing or value is args[0]):
            raise DeviceError(
                f"{name}: a tensor of the host, {list(value.shape)}, among the device's"
            )
        return value

    def to_device(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage().data_ptr()
        for own, host in pairs:
            if host is value:
                return own if own.shape == value.shape else refilled(own, value)
            if storage and storage == host.untyped_storage().data_ptr():
                # A view: of the same storage as what it was taken of.
                assert own.dtype == value.dtype, name
                ahead = value.data_ptr() - own.untyped_storage().data_ptr()
                return strided(own, value.shape, value.stride(), ahead // value.element_size())
        return device_tensor(value)

    drawing = torch.Tag.nondeterministic_seeded in op.tags
    host_args, host_kwargs = tree_map(to_host, (_with_tensors(op, args), kwargs))
    try:
        with _own_draws() if drawing else nullcontext():
            result = op(*host_args, **host_kwargs)
    except RuntimeError as error:
        out = host_kwargs.pop("out", None)
        if out is None or "not resizable" not in str(error):
            raise
        # Torch made an output of another shape before.
        result = op.overloadpacket.default(*host_args, **host_kwargs)
        return refilled(next(own for own, host in pairs if host is out), result)
    return tree_map(to_device, result)


_generator = torch.Generator().manual_seed(1)


@contextmanager
def _own_draws() -> Iterator[None]:
    """The device draws from a generator of its own, which no seed of the host's reaches."""
    before = torch.get_rng_state()
    torch.set_rng_state(_generator.get_state())
    try:
        yield
    finally:
        _generator.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


def _with_tensors(op: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers in the places of tensors, as which they arrive here, made tensors again, of the others' dtype."""
    if not any(type(a) in (int, float, bool) for a in args):
        return args
    used = next((a.dtype for a in args if isinstance(a, Tensor)), torch.get_default_dtype())

    def made(number: Any) -> Tensor:
        kind = torch.float64 if isinstance(number, float) else torch.int64
        keep = kind.is_floating_point and not used.is_floating_point
        return torch.scalar_tensor(number, dtype=kind).to(kind if keep else used)

    return tuple(
        made(a) if type(a) in (int, float, bool) and "Tensor" in str(f.type) else a
        for a, f in zip(args, op._schema.arguments, strict=False)
    )
