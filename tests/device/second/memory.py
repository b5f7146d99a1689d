"""The same memory as a tensor of either device."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NAME = "second"
# Of DLPack: the host, and whatever has no number of its own.
_HOST, _OTHER = 1, 12
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
aten = torch.ops.aten


class DeviceError(RuntimeError):
    """What CUDA would refuse."""


class _Capsule(ctypes.Structure):
    """DLPack's ``DLTensor``, as far as it is needed."""

    _fields_ = (("data", ctypes.c_void_p), ("device", ctypes.c_int32), ("index", ctypes.c_int32))


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _on(device: int, tensor: Tensor) -> Tensor:
    """A tensor of the other device in the memory of ``tensor``, which it keeps alive."""
    capsule = torch._C._to_dlpack(tensor)
    _Capsule.from_address(_pointer(capsule, b"dltensor")).device = device
    found: Tensor = torch._C._from_dlpack(capsule)
    # DLPack says 1 for the stride of an axis of length 1.
    same = found.stride() == tensor.stride()
    return found if same else strided(found, tensor.shape, tensor.stride(), 0)


_refused: set[torch.dtype] = set()


@contextmanager
def refusing(dtype: torch.dtype) -> Iterator[None]:
    """The device has no tensors of this type, as MPS has none of float64."""
    _refused.add(dtype)
    try:
        yield
    finally:
        _refused.remove(dtype)


def device_tensor(host: Tensor) -> Tensor:
    """A tensor of the device in the memory of one that nothing else uses."""
    if host.dtype in _refused:
        raise TypeError(f"the device does not support {host.dtype}")
    return _on(_OTHER, host)


def host_tensor(tensor: Tensor) -> Tensor:
    """A tensor of the host in the memory of one of the device."""
    if tensor.numel() == 0:  # an output that gets its size from the kernel, as a rule
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return _on(_HOST, tensor)


def strided(tensor: Tensor, size: Any, stride: Any, offset: int | None = None) -> Tensor:
    """`torch.as_strided`: the kernel for the CPU takes tensors of any device."""
    view: Tensor = aten.as_strided.default.redispatch(_CPU, tensor, size, stride, offset)
    return view


def refilled(tensor: Tensor, host: Tensor) -> Tensor:
    """The same tensor of the device, with the shape and the memory of one of the host."""
    assert tensor.data_ptr() != host.data_ptr() or host.numel() == 0
    set_, storage = aten.set_.source_Storage_storage_offset, device_tensor(host).untyped_storage()
    filled: Tensor = set_.redispatch(_CPU, tensor, storage, 0, host.shape, host.stride())
    return filled
