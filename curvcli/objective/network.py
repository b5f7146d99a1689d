"""The network that is inspected: its mode, which of its parameters are θ, and what must not change in it."""

import copy
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from curvcli.errors import ModelError, NonFiniteError, did_you_mean, some
from curvcli.machine.lifted import in_float64
from curvcli.machine.precision import without_cudnn
from curvcli.objective.sharding.shards import is_shard
from curvcli.objective.state import STARTS, kept_between_calls, restart

M = TypeVar("M", bound=nn.Module)

# Torch's private name of what wraps a function whose activations are not kept; absent in some releases.
_GENERATOR = "_checkpoint_without_reentrant_generator"

# An attribute of modules that call recurrent layers as functions: programs, whose layers are no modules of torch's.
CALLS_RECURRENT = "calls_recurrent_layers"


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Activations are kept: their checkpointing cannot be differentiated twice."""
    reentrant = checkpoint.CheckpointFunction
    generator = getattr(checkpoint, _GENERATOR, None)

    def plain(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        yield

    try:
        reentrant.apply = staticmethod(  # type: ignore[method-assign]
            lambda function, _preserve, *args: function(*args)
        )
        if generator is not None:
            setattr(checkpoint, _GENERATOR, plain)
        yield
    finally:
        del reentrant.apply
        if generator is not None:
            setattr(checkpoint, _GENERATOR, generator)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """How the network is run, whoever asks: from one kind of kernels, and without leaving a trace in it.

    Encoders have a fast path for inference that drops padded places and has no derivative; it is off, so that the loss
    is the one whose gradient is taken. So are cuDNN's recurrent layers, which have no derivative in evaluation mode.
    Activations are not checkpointed. Buffers are copies. What modules keep between calls is put back. A network in
    float64 computes in float64 throughout.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    wide = any(p.dtype == torch.float64 for p in model.parameters())
    try:
        with ExitStack() as stack:
            stack.enter_context(untouched_buffers(model))
            stack.enter_context(_without_checkpointing())
            stack.enter_context(_native_recurrence(model))
            if wide:
                stack.enter_context(in_float64())
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        restart(model)


def _native_recurrence(model: nn.Module) -> AbstractContextManager[None]:
    """cuDNN is off where a layer is recurrent."""
    if any(
        isinstance(m, nn.RNNBase) or getattr(m, CALLS_RECURRENT, False) for m in model.modules()
    ):
        return without_cudnn()
    return nullcontext()


@contextmanager
def untouched_buffers(model: nn.Module) -> Iterator[None]:
    """Modules work on copies of their buffers, so that no evaluation changes the next one."""
    saved = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        for module, name, buffer in saved:
            module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, name, buffer in saved:
            module._buffers[name] = buffer


def start_afresh(model: nn.Module, call: Callable[[], object]) -> list[str]:
    """Let a network that keeps state between calls start each of them from what it has now; returns a note if it does.

    Args:
        model: the network, in its mode.
        call: runs it, the same each time.
    """
    with torch.no_grad(), evaluation(model):
        kept = kept_between_calls(model, call)
    if not kept:
        return []
    setattr(model, STARTS, kept)
    names = dict.fromkeys(f"{module or type(model).__name__}.{name}" for module, name in kept)
    change = "changes" if len(names) == 1 else "change"
    return [
        f"{some(names)} {change} from call to call: every call starts from the state that the model came with"
    ]


# Modules that training mode changes in nothing but dropout.
_ONLY_DROPOUT = (nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.RNNBase)


def set_mode(model: nn.Module, train_mode: bool) -> list[str]:
    """Evaluation mode, or training mode with dropout off; returns notes on what was not literal."""
    model.train(train_mode)
    notes = _dense_gradients(model)
    if not train_mode:
        return notes
    dropouts = [m for m in model.modules() if isinstance(m, _ONLY_DROPOUT)]
    for module in dropouts:
        module.eval()
    if dropouts:
        notes.append(f"dropout stays off in train mode ({len(dropouts)} modules)")
    return notes


def _dense_gradients(model: nn.Module) -> list[str]:
    """Embeddings give dense gradients: sparse ones have no second derivative."""
    sparse = [
        m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse
    ]
    for module in sparse:
        module.sparse = False
    if not sparse:
        return []
    return [
        f"gradients of {len(sparse)} embeddings are dense here: sparse ones have no second derivative"
    ]


def uses_batch_statistics(model: nn.Module) -> bool:
    """Whether a BatchNorm normalises by the batch it is given."""
    return any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and (m.training or not m.track_running_stats)
        for m in model.modules()
    )


def _starred(pattern: str, names: Iterable[str]) -> str:
    """The pattern with the star that it lacks, where names begin with it."""
    begun = any(name.startswith(pattern) for name in names)
    return f"write '{pattern}*' for all that begin with it; " if begun else ""


def choose_parameters(
    model: nn.Module, select: Sequence[str] = ()
) -> tuple[list[str], list[nn.Parameter], list[str]]:
    """Names and tensors of θ, and notes on what was left out. Those not selected are frozen.

    Args:
        model: the network.
        select: globs over parameter names; empty: all that are trainable.

    Raises:
        ModelError: nothing is left, or a glob matches nothing, or the dtypes differ.
    """
    # named_parameters() lists a tied parameter once.
    notes = []
    everything = dict(model.named_parameters())
    trainable = {n: p for n, p in everything.items() if p.requires_grad}
    frozen = [n for n, p in everything.items() if not p.requires_grad and not is_shard(n)]
    if frozen:
        notes.append(f"{len(frozen)} frozen parameters are left out: {some(frozen, 3)}")
    chosen = trainable
    if select:
        for pattern in select:
            if not fnmatch.filter(trainable, pattern):
                raise ModelError(
                    f"no trainable parameter matches {pattern!r}."
                    + did_you_mean(pattern.strip("*"), trainable),
                    f"{_starred(pattern, trainable)}the parameters are {some(trainable, 8)}",
                )
        chosen = {n: p for n, p in trainable.items() if any(fnmatch.fnmatch(n, s) for s in select)}
        for name in trainable.keys() - chosen.keys():
            trainable[name].requires_grad_(False)
    if not chosen:
        raise ModelError(
            f"the model has no trainable parameter ({len(everything)} parameters in all)",
            "integer and frozen parameters cannot be differentiated; unfreeze some in the factory",
        )
    kinds = {p.dtype for p in chosen.values()}
    if len(kinds) > 1:
        raise ModelError(
            f"the parameters have several dtypes: {some(str(k) for k in kinds)}",
            "pass --dtype float32",
        )
    return list(chosen), list(chosen.values()), notes


def check_weights(model: nn.Module) -> None:
    """Weights and buffers are finite.

    Raises:
        NonFiniteError: NaN or Inf in weights, NaN in buffers.
    """
    for kind, tensors in (
        ("weights", model.named_parameters()),
        ("buffers", model.named_buffers()),
    ):
        bad = {
            name: int((~torch.isfinite(t)).sum())
            for name, t in tensors
            # Attention masks are buffers full of -inf by design: NaN alone is wrong there.
            if t.is_floating_point()
            and not bool((torch.isfinite(t) if kind == "weights" else ~torch.isnan(t)).all())
        }
        if bad:
            first = next(iter(bad))
            raise NonFiniteError(
                f"{kind} contain NaN or Inf: {bad[first]} values in {first!r}"
                + (f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""),
                "'curvcli info CHECKPOINT' lists them all",
            )


def is_stock(module: nn.Module) -> bool:
    """Whether a module computes what torch's layer of that kind computes: its forward is torch's own."""
    return "forward" not in vars(module) and type(module).forward.__module__.startswith("torch.nn.")


def copied(model: M) -> M:
    """A copy, also of a module with tensors that it computed itself (pruning, weight_norm): it computes them again."""
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})
