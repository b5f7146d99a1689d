"""A measurement in the middle of a training loop leaves no trace."""

import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(*generators: torch.Generator) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python go on as if none had been drawn; autocast is off.

    The warnings of a measurement are no warnings of the training.

    Args:
        generators: that go on in the same way.
    """
    python, numpy_state = random.getstate(), np.random.get_state()
    states = [generator.get_state() for generator in generators]
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    kinds = ("cpu", "cuda") if torch.cuda.is_initialized() else ("cpu",)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=list(cards)))
            stack.enter_context(torch.inference_mode(False))  # turns gradients on as well
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def generators_of(data: Any) -> list[torch.Generator]:
    """Those that a loader draws its order from."""
    batches = getattr(data, "batch_sampler", None)
    homes = (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [getattr(home, "generator", None) for home in homes]
    return [g for g in found if isinstance(g, torch.Generator)]


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of DistributedDataParallel, DataParallel or torch.compile."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    inner: Any = model
    while isinstance(inner, wrappers) or hasattr(inner, "_orig_mod"):
        inner = inner.module if isinstance(inner, wrappers) else inner._orig_mod
    found: nn.Module = inner
    return found


_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def without_foreign_hooks(model: nn.Module) -> nn.Module:
    """Hooks that torch did not bring are taken out: a recorder of activations must not see the probe.

    Those of pruning and weight norm are a part of the network.
    """
    for module in model.modules():
        for kind in _HOOKS:
            hooks = getattr(module, kind)
            for key in _foreign(hooks):
                del hooks[key]
    return model


@contextmanager
def without_global_hooks() -> Iterator[None]:
    """Hooks on all modules, as `register_module_forward_hook` sets them, are not called either."""
    saved = [(hooks, dict(hooks)) for hooks in _global_hooks()]
    try:
        for hooks, _ in saved:
            for key in _foreign(hooks):
                del hooks[key]
        yield
    finally:
        for hooks, before in saved:
            hooks.clear()
            hooks.update(before)


def _global_hooks() -> list[dict[int, Any]]:
    named = (getattr(nn.modules.module, f"_global{kind}", None) for kind in _HOOKS)
    return [hooks for hooks in named if hooks is not None]


def _foreign(hooks: dict[int, Any]) -> list[int]:
    def home(hook: Any) -> str:
        return getattr(hook, "__module__", None) or type(hook).__module__

    return [key for key, hook in hooks.items() if not home(hook).startswith("torch.")]
