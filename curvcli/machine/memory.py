"""Bytes: how many there are, how many something needs, and what to do when they run out."""

import errno
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from curvcli.errors import MemoryLimitError
from curvcli.machine.device import free_memory, used_memory

# Fragmentation and buffers inside kernels, which no tensor shows.
_OVERHEAD = 1.1
# Memory that the allocator holds beyond live tensors while graphs come and go: processes grew by up to 1.53 times the
# peak of their tensors on convolutional networks (glibc); the factor 1.1 of it is in `Need`.
HELD = 1.4
# What libraries say when an allocation fails, in small letters: the host's allocators, CUDA's, and those of its
# libraries (cuBLAS, cuDNN, cuFFT, cuSOLVER, cuSPARSE, NCCL and AMD's by the same names). A handle that cannot
# be made, and a convolution for which no engine is found, lack memory too.
_SIGNS = (
    "not enough memory", "out of memory", "outofmemory", "cannot allocate memory", "can't allocate memory", "alloc_cpu",
    "bad_alloc", "alloc_failed", "allocation_failed", "allocation failed", "erroroutofmemory", "errormemoryallocation",
    "insufficient_resources", "blascreate(handle)", "dncreate(handle)", "unable to find an engine to execute",
)  # fmt: skip

R = TypeVar("R")


class Need(NamedTuple):
    """Bytes of a graph or of its peak: ``fixed`` whatever the batch, ``per_sample`` for each sample."""

    fixed: float
    per_sample: float

    def of(self, samples: int) -> float:
        """Bytes for so many samples."""
        return _OVERHEAD * (self.fixed + self.per_sample * samples)

    def samples_within(self, size: float) -> int:
        """Samples that fit in ``size`` bytes."""
        return int((size / _OVERHEAD - self.fixed) / max(1.0, self.per_sample))


def need_from(small: tuple[int, float], large: tuple[int, float]) -> Need:
    """What grows linearly with the samples, from two measurements (samples, bytes).

    >>> need_from((2, 30.0), (4, 40.0))
    Need(fixed=20.0, per_sample=5.0)
    """
    (samples, first), (more, last) = small, large
    if more == samples:
        return Need(0.0, first / samples)
    slope = max(0.0, (last - first) / (more - samples))
    return Need(max(0.0, first - slope * samples), slope)


def room(device: torch.device, limit: int | None) -> int:
    """Bytes that may still be allocated: what is free, within what is left of the process' limit.

    Args:
        device: where.
        limit: bytes that the process may use in all; None: as many as there are.
    """
    free = free_memory(device)
    return free if limit is None else max(0, min(free, limit - used_memory(device)))


def human(size: float) -> str:
    """Bytes in the unit that suits them.

    >>> human(2_500_000)
    '2.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an allocation failed, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS):
        return True
    return error.__cause__ is not None and out_of_memory(error.__cause__)


def not_of_memory(error: BaseException) -> None:
    """Before an exception of any kind is explained by what was being done: it may be that memory ran out.

    Raises:
        MemoryLimitError: it is.
    """
    if isinstance(error, MemoryLimitError):
        raise error
    if out_of_memory(error):
        raise MemoryLimitError(
            f"out of memory: {' '.join(str(error).split())[:160]}",
            "set --memory to a limit that the machine can hold",
        ) from error


def check_fits(size: float, limit: int | None, what: str) -> None:
    """Before something is made: whether there is room for it.

    Args:
        size: in bytes.
        limit: bytes that the process may use in all; None: as many as there are.
        what: takes it, for messages.

    Raises:
        MemoryLimitError: there is not.
    """
    left = room(torch.device("cpu"), limit)
    if size > left:
        raise MemoryLimitError(
            f"{what} takes {human(size)}, and {human(left)} are left",
            "raise --memory, or take a smaller part",
        )


def retried(compute: Callable[[], R], give_way: Callable[[], None]) -> R:
    """The value of ``compute``, tried again each time that memory runs out.

    Args:
        compute: what may run out of memory.
        give_way: makes the next attempt take less.

    Raises:
        MemoryLimitError: ``give_way`` cannot make it any smaller.
    """
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            give_way()
