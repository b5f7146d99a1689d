"""Bytes of the tensors that a computation makes."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from curvcli.machine.containers import tensors_in


class MemoryMeter(TorchDispatchMode):
    """Counts the bytes of tensors that are created while it is active, and their peak.

    Works alike on every device, and for pieces far too small to be seen in the process' size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.total = 0
        """Bytes of all tensors that were created, whether they are still there or not."""
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's hook; otherwise the first operation imports its compiler, which takes most of a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the storages that it made."""
        result = func(*args, **(kwargs or {}))
        inputs: set[int] | None = None
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            pointer = storage.data_ptr()
            if pointer in self._known:
                continue
            if inputs is None:
                found = tensors_in((args, kwargs))
                inputs = {t.untyped_storage().data_ptr() for t in found}
            if pointer not in inputs:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        pointer, size = storage.data_ptr(), storage.nbytes()
        self._known.add(pointer)
        self.live += size
        self.total += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, pointer, size)

    def _remove(self, pointer: int, size: int) -> None:
        self._known.discard(pointer)
        self.live -= size
