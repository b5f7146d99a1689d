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
def undisturbed() -> Iterator[None]:
    """Random numbers of torch, NumPy and Python go on as if none had been drawn; autocast is off.

    The warnings of a measurement are no warnings of the training.
    """
    python, numpy_state = random.getstate(), np.random.get_state()
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    kinds = ("cpu", "cuda") if torch.cuda.is_initialized() else ("cpu",)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=list(cards)))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


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
            for key, hook in list(hooks.items()):
                home = getattr(hook, "__module__", None) or type(hook).__module__
                if not home.startswith("torch."):
                    del hooks[key]
    return model
