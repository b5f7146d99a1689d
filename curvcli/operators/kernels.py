"""Kernels without a second derivative, and what is used in their place."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# What torch says when it cannot differentiate a second time.
_SIGNS = (
    "is not implemented",
    "not implemented for",
    "once_differentiable",
    "double backward",
    "double-backward",
    "does not support",
    "cannot be differentiated twice",
    "derivative for",
)


def lacks_second_derivative(error: RuntimeError) -> bool:
    """Whether ``error`` says that an operation cannot be differentiated a second time."""
    text = str(error)
    return isinstance(error, NotImplementedError) or any(sign in text for sign in _SIGNS)


class Kernels:
    """Which replacements are switched on; more are added as errors ask for them."""

    def __init__(self) -> None:
        self._on: list[str] = []

    def switch_for(self, error: RuntimeError) -> str | None:
        """Switch on the replacement that ``error`` asks for; its note, or None if there is none."""
        text = str(error).lower()
        for name, (words, note) in _REPLACEMENTS.items():
            if name not in self._on and any(word in text for word in words):
                self._on.append(name)
                return note
        return None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Evaluate with the replacements that are on."""
        with ExitStack() as stack:
            if "attention" in self._on:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if "recurrent" in self._on:
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield


_REPLACEMENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "attention": (
        ("attention",),
        "fused attention has no second derivative: the math kernel is used",
    ),
    "recurrent": (
        ("rnn", "lstm", "gru", "mkldnn", "cudnn"),
        "cuDNN/oneDNN kernels have no second derivative here: the native ones are used",
    ),
}
