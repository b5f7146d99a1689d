"""Kernels without a derivative, and what is used in their place."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvcli.machine.memory import out_of_memory
from curvcli.machine.precision import without_cudnn, without_onednn
from curvcli.operators.autodiff.rewrites.registry import Rewritten

# What torch says when it cannot differentiate, or not a second time.
_SIGNS = (
    "can only be called in training mode",
    "is not implemented",
    "not implemented for",
    "once_differentiable",
    "double backward",
    "double-backward",
    "does not support",
    "cannot be differentiated twice",
    "derivative for",
)


def lacks_derivative(error: RuntimeError) -> bool:
    """Whether ``error`` says that an operation cannot be differentiated, or not as often as was asked for."""
    if out_of_memory(error):
        return False
    text = str(error)
    return isinstance(error, NotImplementedError) or any(sign in text for sign in _SIGNS)


def missing_derivatives(gradients: list[Tensor]) -> str | None:
    """Names of the operations in a gradient's graph, if one of them cannot be differentiated.

    Autograd leaves out branches that end in such an operation *silently* when no parameter lies
    beyond it, which would make products zero; so the graph is searched for it.
    """
    seen: set[Any] = set()
    waiting: list[Any] = [g.grad_fn for g in gradients]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    names = {node.name() for node in seen}
    return " ".join(sorted(names)) if names & _STUBS else None


PLAIN = "layers are evaluated by torch's own operations only: those written out have too few derivatives here"
"""What `Kernels.switch_for` notes when it turns plain."""

# Nodes that raise when they are differentiated.
_STUBS = {"torch::autograd::Error", "torch::autograd::NotImplemented"}


class Kernels:
    """Which replacements are switched on; more are added as errors ask for them.

    Args:
        plain: torch's own operations only, without the rewrites that make products cheaper.
        lean: see `Objective`.
    """

    def __init__(
        self,
        plain: bool = False,
        lean: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.plain, self._lean = plain, lean
        self._on: list[str] = []

    @contextmanager
    def building(self) -> Iterator[None]:
        """Build a graph for products: `active`, and rewritten unless plain."""
        with self.active(), nullcontext() if self.plain else Rewritten():
            yield

    def switch_for(self, reason: str) -> str | None:
        """Switch on the replacement that ``reason`` asks for; its note, or None if there is none.

        Args:
            reason: an error message, or names of operations.
        """
        text = reason.lower()
        for name, (words, note) in _REPLACEMENTS.items():
            if name not in self._on and any(word in text for word in words):
                self._on.append(name)
                return note
        if not self.plain:
            self.plain = True
            return PLAIN
        return None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Evaluate with the replacements that are on."""
        with ExitStack() as stack:
            stack.enter_context(self._lean())
            if "attention" in self._on:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if "recurrent" in self._on:
                stack.enter_context(without_onednn())
                stack.enter_context(without_cudnn())
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
