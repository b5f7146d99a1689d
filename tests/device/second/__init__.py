"""A second device without a GPU, for tests: tensors of the host's memory that torch takes for another device's.

A program that runs on CUDA has to keep tensors of the two devices apart, must not draw on the device with a generator
of the host, should rarely wait for the device, and has its backward passes in a thread of autograd's own. All that can
be seen without CUDA. Torch has a place for a backend that is written in Python (``PrivateUse1``); this one gives the
device `NAME`, whose tensors are plain `torch.Tensor` with their own dispatch key and autograd. Below autograd each
operation arrives in `dispatch.fallback`, where

- it is refused if it mixes tensors of both devices, or draws from a generator of the host,
- it is counted if the host would have to wait for the device (`Watch`), with the line of the program that asked,
- it is computed by the CPU's kernel, in the same memory.

Recurrent layers behave as cuDNN's (no derivative in evaluation mode, no second one), LSTM cells as CUDA's fused ones,
attention as the fused kernel (no second derivative), each until it is switched off as on CUDA.

Not covered: the numbers of CUDA kernels (TF32, atomic additions, algorithms of cuDNN), code behind ``device.type ==
"cuda"`` (the type is `NAME`), memory that runs out, streams, speed. An exception in a hook of a tensor ends the process
(the guard of a Python backend does not bear one). Torch 2.10 and later have the interface. A process that has called
`install` keeps the device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.device.second.dispatch import fallback
from tests.device.second.memory import NAME, DeviceError, aten, refusing
from tests.device.second.once import attention, recurrent
from tests.device.second.watch import Watch, watching

__all__ = ["NAME", "DeviceError", "Watch", "install", "refusing", "watching"]


def _deep_copied(self: Tensor, memo: dict[int, Any]) -> Tensor:
    """`copy.deepcopy`; torch's own asks for storage, for which there is no allocator."""
    if self.device.type != NAME:
        return _torchs_deep_copy(self, memo)
    if id(self) not in memo:
        memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
    copied: Tensor = memo[id(self)]
    return copied


def _tied(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """`nn.Module.to` and its like: a parameter that several modules share is still one, as on the way to CUDA."""
    before = {(m, n): id(p) for m in self.modules() for n, p in m._parameters.items()}
    _torchs_apply(self, fn, recurse)
    first: dict[int, Any] = {}
    for (module, name), known in before.items():
        moved = first.setdefault(known, module._parameters[name])
        if moved is not module._parameters[name]:
            module._parameters[name] = moved
    return self


_torchs_apply: Callable[..., nn.Module] = nn.Module._apply
_torchs_deep_copy: Callable[[Tensor, dict[int, Any]], Tensor] = Tensor.__deepcopy__
_libraries: list[torch.library.Library] = []


def install() -> None:
    """From now on there is a device `NAME` in this process."""
    if _libraries:
        return
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME)
    nn.Module._apply = _tied  # type: ignore[method-assign]
    Tensor.__deepcopy__ = _deep_copied  # type: ignore[method-assign]
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(fallback, "PrivateUse1")
    kernels = torch.library.Library("aten", "IMPL")
    # Torch has kernels for every device for these; all that they do is to refuse, or to ask for one of the device's.
    for name in ("copy_", "convolution_overrideable", "convolution_backward_overrideable"):
        op = getattr(aten, name).default
        kernels.impl(name, lambda *a, _op=op, **k: fallback(_op, *a, **k), "PrivateUse1")
    for op in (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input):
        kernels.impl(op, recurrent(op, op is aten.lstm.input), "AutogradPrivateUse1")
    kernels.impl("scaled_dot_product_attention", attention, "AutogradPrivateUse1")
    _libraries.extend((everything, kernels))
