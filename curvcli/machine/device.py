"""The one place that knows devices: choosing one, its memory, free, used and peak."""

import ctypes
import resource
import sys
from pathlib import Path

import torch

from curvcli.errors import UsageError

# glibc's name for the size from which a block is mapped by itself, and given back when it is freed.
_M_MMAP_THRESHOLD = -3
_MAPPED_FROM = 4 << 20
# Left to the allocator, the other processes and what was not foreseen.
_MARGIN = 0.85
# Entries that keep an accelerator busy for longer than it takes to start on them; float32 counts as far, too.
_LAUNCHED = 1 << 24


def resolve_device(text: str) -> torch.device:
    """``auto`` (CUDA if there is one, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UsageError: there is no such device here.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise UsageError(
            f"--device {text!r} is not a device", "use auto, cpu, cuda, cuda:0 or mps"
        ) from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(
                f"--device {text} was asked for, but CUDA is not available here", "use --device cpu"
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UsageError(
                f"--device {text} was asked for, but there are {torch.cuda.device_count()} CUDA devices",
                "number them from cuda:0",
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError(
                "--device mps was asked for, but MPS is not available here", "use --device cpu"
            )
    elif device.type != "cpu":
        raise UsageError(
            f"--device {text!r} is not supported", "use auto, cpu, cuda, cuda:0 or mps"
        )
    return device


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device computes in ``dtype`` (MPS has no float64)."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        torch.empty(0, dtype=dtype, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def check_supports(device: torch.device, dtype: torch.dtype) -> None:
    """The device computes in ``dtype``.

    Raises:
        UsageError: it does not.
    """
    if not supports(device, dtype):
        raise UsageError(f"{device.type} does not compute in {dtype}", "pass --dtype float32")


def with_double(device: torch.device) -> torch.device:
    """Where what is on ``device`` is computed in float64: there, or on the CPU."""
    return device if supports(device, torch.float64) else torch.device("cpu")


def block(device: torch.device, cached: int) -> int:
    """Entries worked on at once: so few that they stay in a core's cache, or so many that a launch does not count."""
    return cached if device.type == "cpu" else max(cached, _LAUNCHED)


def free_memory(device: torch.device) -> int:
    """Bytes that may be used now, less a margin; torch's own cache of freed blocks is free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(_MARGIN * (free + cached))
    if device.type == "mps":
        used = torch.mps.current_allocated_memory()
        return int(_MARGIN * (torch.mps.recommended_max_memory() - used))
    return int(_MARGIN * _free_host_memory())


def used_memory(device: torch.device) -> int:
    """Bytes in use now: allocated on the device, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    status = Path("/proc/self/statm")
    if status.exists():
        resident = int(status.read_text().split()[1]) * resource.getpagesize()
        return max(0, resident - _nameless_files())
    return peak_memory(device)


def _nameless_files() -> int:
    """Resident bytes of mapped files without a name: vectors that the system can write away when memory is short."""
    if " (deleted)" not in Path("/proc/self/maps").read_text(errors="replace"):
        return 0
    total, counted = 0, False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if (
            "-" in name and name.split("-")[0].isalnum()
        ):  # a mapping begins: 7f00-7f10 rw-s … /tmp/#12 (deleted)
            place = line.split(maxsplit=5)[-1]
            counted = place.endswith(" (deleted)") and not place.startswith(("/dev/", "/memfd:"))
        elif name == "Rss" and counted:
            total += int(value.split()[0]) * 1024
    return total


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use: allocated on the device, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # On Linux this would begin at the size of the process that started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_freed_memory() -> None:
    """On Linux: large blocks that are freed go back to the system at once, so that a limit can be held.

    Otherwise the C library keeps them, up to half as much again as is in use; new pages for each block take time,
    so this is done only where a limit was asked for.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)


def _free_host_memory() -> int:
    """Available bytes, within the control group's limit where there is one (containers)."""
    candidates = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                candidates.append(int(line.split()[1]) * 1024)
    limit, current = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and current.exists() and limit.read_text().strip().isdigit():
        candidates.append(int(limit.read_text()) - int(current.read_text()))
    return max(0, min(candidates)) if candidates else 4 << 30
