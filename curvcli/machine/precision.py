"""The kernels that torch chooses among: the precision of float32 products, cuDNN and oneDNN."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import backends

from curvcli.machine.device import supports

# Operators with a precision of their own, which is not that of the legacy flags. Absent before torch 2.9.
_CUDA: tuple[Any, ...] = ()
_CPU: tuple[Any, ...] = ()
if hasattr(backends.cudnn, "conv"):
    _CUDA = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    _onednn: Any = backends.mkldnn
    _CPU = (_onednn.matmul, _onednn.conv, _onednn.rnn)


def set_precision(tf32: bool) -> None:
    """Products in full float32 on every device, unless TF32 is asked for on CUDA (10 bits of mantissa instead of 23).

    The flags of all generations are set: torch refuses to tell its precision where they contradict each other.
    """
    torch.set_float32_matmul_precision("highest")
    backends.cuda.matmul.allow_tf32 = tf32
    backends.cudnn.allow_tf32 = tf32
    for operator in _CUDA:
        operator.fp32_precision = "tf32" if tf32 else "ieee"
    for operator in _CPU:
        operator.fp32_precision = "ieee"


def device_notes(device: torch.device, tf32: bool) -> list[str]:
    """What an answer that was computed on an accelerator says of its numbers."""
    if device.type == "cpu":
        return []
    full = "float32 products are in full precision (TF32 is off)"
    notes = ["float32 products may be in TF32 (10 bits of mantissa)" if tf32 else full]
    if not supports(device, torch.float64):
        notes.append(
            f"{device.type} has no float64: what needs it is computed on the CPU, and sums are in float32"
        )
    return notes


@contextmanager
def restored_precision() -> Iterator[None]:
    """What is set inside holds no longer than that."""
    products, convolutions = _known(torch.get_float32_matmul_precision), _known(_allow_tf32)
    operators = [(operator, operator.fp32_precision) for operator in (*_CUDA, *_CPU)]
    try:
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            backends.cudnn.allow_tf32 = convolutions
        for operator, precision in operators:
            operator.fp32_precision = precision


def _allow_tf32() -> Any:
    return backends.cudnn.allow_tf32


def _known(read: Callable[[], Any]) -> Any:
    """The value of a legacy flag; None where the program has set the operators' own ones to something else."""
    try:
        return read()
    except RuntimeError:
        return None


def without_cudnn() -> AbstractContextManager[None]:
    """Torch's own kernels in the place of cuDNN's.

    `torch.backends.cudnn.flags` would allow TF32 as well.
    """
    return _without(backends.cudnn)


def without_onednn() -> AbstractContextManager[None]:
    """Torch's own kernels in the place of oneDNN's."""
    return _without(backends.mkldnn)


@contextmanager
def _without(backend: Any) -> Iterator[None]:
    before = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = before
