"""A factory and named tensors -> the nn.Module that holds them."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from curvcli.errors import ModelError, nearest, some
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.checkpoints.quantised import dequantised, scales_of
from curvcli.loading.checkpoints.selection import is_extra
from curvcli.loading.models.guess import build_auto
from curvcli.loading.models.library import build_from_library, is_library
from curvcli.loading.models.names import match_names, missing
from curvcli.loading.models.weight_norm import weight_norm_names
from curvcli.loading.references import resolve
from curvcli.machine.containers import move
from curvcli.machine.memory import not_of_memory
from curvcli.objective.calls import call_model
from curvcli.objective.network import copied, evaluation

Arranged = tuple[tuple[Any, ...], dict[str, Any], Any]
"""Positional arguments, keyword arguments and targets."""


def build_model(
    reference: str, arguments: Mapping[str, Any], checkpoint: Checkpoint | None = None
) -> nn.Module:
    """The network that ``module:attribute`` names: a factory, a class, or an instance (copied).

    ``timm:NAME`` and ``torchvision:NAME`` are networks of these libraries, without their weights; ``auto`` is a plain
    network that fits the checkpoint's shapes.

    Raises:
        ModelError: it cannot be imported or called, or is not a module.
    """
    if reference == "auto":
        if checkpoint is None:
            raise ModelError("--model auto needs a checkpoint", "name one")
        return build_auto(checkpoint, arguments)
    if is_library(reference):
        return build_from_library(reference, arguments)
    found = resolve(reference, "--model", ModelError)
    if isinstance(found, nn.Module):
        if arguments:
            raise ModelError(
                f"{reference} is an instance and takes no --model-arg", "name its class instead"
            )
        return copied(found)
    if not callable(found):
        raise ModelError(
            f"{reference} is a {type(found).__name__}, not a module, class or function",
            "name a factory",
        )
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        given = f" with {dict(arguments)}" if arguments else " without arguments"
        missing = re.search(r"missing a required .*argument: '(\w+)'", str(error))
        raise ModelError(
            f"{reference} cannot be called{given}: {error}",
            f"set it by --model-arg {missing[1] if missing else 'NAME'}=VALUE",
        ) from None
    except ValueError:  # a callable without a signature
        pass
    try:
        model = found(**arguments)
    except Exception as error:
        not_of_memory(error)
        raise ModelError(
            f"{reference} failed: {type(error).__name__}: {error}", "--verbose shows the traceback"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{reference} returned a {type(model).__name__}, not an nn.Module", "return the module"
        )
    return model


def takes_grey(
    model: nn.Module, shape: tuple[int, int, int], arrange: Callable[[Any], Arranged]
) -> bool:
    """Whether images of (samples, height, width) fit the model with one channel, and do not with three."""
    like = next(model.parameters(), torch.empty(0))

    def fits(channels: int) -> bool:
        x = torch.zeros(shape[0], channels, *shape[1:], dtype=like.dtype, device=like.device)
        try:
            positional, keywords, _ = arrange({"x": x})
            with torch.no_grad(), evaluation(model.eval()):
                model(*positional, **keywords)
        except Exception as error:  # a model may raise anything on what it does not take
            not_of_memory(error)
            return False
        return True

    return not fits(3) and fits(1)


def settle_lazy(model: nn.Module, batch: Callable[[], Arranged]) -> list[str]:
    """Lazy layers take their shapes from the arguments in a batch; returns a note if there are any."""
    if not any(is_lazy(t) for t in model.state_dict().values()):
        return []
    positional, keywords, _ = move(batch(), torch.device("cpu"), torch.get_default_dtype())
    with torch.no_grad():
        call_model(model.eval(), positional, keywords)
    return ["lazy layers took their shapes from the first batch"]


class Fit(NamedTuple):
    """Which tensor of a checkpoint is which of a model."""

    tensors: dict[str, Tensor]
    """Of the model, by the names in the checkpoint."""
    names: dict[str, str]
    """In the model, by those in the checkpoint."""
    scales: dict[str, str]
    """By which tensor another one is multiplied, both by their names in the checkpoint."""
    extra: dict[str, Any]
    notes: list[str]


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, allow_partial: bool = False
) -> list[str]:
    """Copy the checkpoint's tensors into ``model``; returns notes on what was not literal.

    Raises:
        ModelError: see `fit_weights`; or quantised weights.
    """
    fit = fit_weights(model, checkpoint, allow_partial)
    with torch.no_grad():
        for stored, tensor in checkpoint.items():
            if stored in fit.tensors:
                if stored in fit.scales:
                    scale = checkpoint[fit.scales[stored]]
                    _copy(
                        fit.tensors[stored], dequantised(tensor, scale, stored), fit.names[stored]
                    )
                else:
                    _copy(fit.tensors[stored], tensor, fit.names[stored])
    set_extra_states(model, fit)
    return fit.notes


def set_extra_states(model: nn.Module, fit: Fit) -> None:
    """Give modules what they keep besides tensors."""
    for name, value in fit.extra.items():
        model.get_submodule(name.rpartition(".")[0]).set_extra_state(value)


def fit_weights(model: nn.Module, checkpoint: Checkpoint, allow_partial: bool = False) -> Fit:
    """Find out which tensor of ``checkpoint`` is which of ``model``.

    What wrappers put into names (DataParallel, FSDP, torch.compile, Lightning) is removed, see `match_names`.
    A missing key that is tied to a loaded one is not missing.

    Raises:
        ModelError: keys are missing, unexpected or of another shape, and ``allow_partial`` is off; or
            nothing matches at all.
    """
    scales = scales_of(checkpoint)
    whole = model.state_dict()
    expected = {n: t for n, t in whole.items() if not is_extra(n)}
    extra, lost = _extra_states([n for n in whole if is_extra(n)], checkpoint.extra)
    stored = {i.name: i for i in checkpoint.tensors if i.name not in scales.values()}
    renamed = weight_norm_names(stored, expected)
    called = {renamed.get(n, n): n for n in stored}
    matched, notes = match_names({c: stored[n].shape for c, n in called.items()}, expected)
    names = {n: called[c] for n, c in matched.items()}
    if renamed:
        notes.append(
            f"{len(renamed) // 2} weights with the other form of weight_norm, the same g and v: {some(renamed, 2)}"
        )

    matching = names.keys() & expected.keys()
    misshapen = {n for n in matching if tuple(expected[n].shape) != stored[names[n]].shape}
    loadable = matching - misshapen
    if not loadable:
        raise ModelError(
            f"no tensor of the checkpoint fits the model: it has {some(sorted(stored), 3)}; "
            f"the model expects {some(sorted(expected), 3)}",
            "FSDP saved its own flat parameters: save with StateDictType.FULL_STATE_DICT"
            if any(n.endswith("_flat_param") for n in stored)
            else "check that --model builds the network this checkpoint was saved from",
        )
    absent = missing(set(names), loadable, expected) | lost
    unexpected = names.keys() - expected.keys()
    problems = _describe(
        absent, unexpected, misshapen, expected, {n: stored[names[n]].shape for n in matching}
    )
    if problems and not allow_partial:
        raise ModelError(
            "the checkpoint does not fit the model: " + "; ".join(problems),
            "mend --model or --model-arg, or pass --allow-partial to go on with what fits",
        )
    if problems:
        notes.append("loaded in part: " + "; ".join(problems))
    _check_tied({n: names[n] for n in expected if n in loadable}, expected, checkpoint)
    if scales:
        notes.append(
            f"{len(scales)} float8 tensors are multiplied by the scales stored beside them"
        )
    chosen = {stored_name: n for n, stored_name in names.items() if n in loadable}
    return Fit({s: expected[n] for s, n in chosen.items()}, chosen, scales, extra, notes)


def compute_dtype(
    model: nn.Module, checkpoint: Checkpoint | None, asked: str
) -> tuple[torch.dtype, str | None]:
    """The dtype to compute in, and a note when that is not the stored one."""
    stored = (
        {i.dtype for i in checkpoint.tensors}
        if checkpoint
        else {_short(p.dtype) for p in model.parameters()}
    )
    return computed_in(stored, asked)


def computed_in(stored: set[str], asked: str) -> tuple[torch.dtype, str | None]:
    """`compute_dtype` of a network whose tensors are stored as these."""
    if asked != "auto":
        dtype: torch.dtype = getattr(torch, asked)
        return dtype, None
    parts = {"complex128": "float64", "complex64": "float32"}
    floats = {parts.get(d, d) for d in stored} & {"float64", "float32", "float16", "bfloat16"}
    if "float64" in floats and floats <= {"float64"}:
        return torch.float64, None
    low = sorted(floats - {"float32", "float64"})
    note = (
        f"weights stored as {', '.join(low)} are computed in float32 (--dtype changes that)"
        if low
        else None
    )
    return torch.float32, note


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _copy(into: Tensor, tensor: Tensor, name: str) -> None:
    if into.is_floating_point() and not (tensor.is_floating_point() or tensor.dtype == torch.bool):
        raise ModelError(
            f"{name!r} is stored as integers ({_short(tensor.dtype)}): quantised weights have no curvature",
            "use the checkpoint from before quantisation, or dequantise it",
        )
    into.copy_(tensor)


def _extra_states(
    expected: list[str], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], set[str]]:
    """What modules keep besides tensors, by its name in the model; and what the checkpoint lacks of it."""
    found = {}
    for name in expected:
        places = [n for n in stored if f".{n}".endswith(f".{name}")]
        if len(places) == 1:
            found[name] = stored[places[0]]
    return found, set(expected) - found.keys()


def _check_tied(
    names: Mapping[str, str], expected: Mapping[str, Tensor], checkpoint: Checkpoint
) -> None:
    """What the model ties is stored once, or the same each time."""
    first: dict[tuple[Any, ...], str] = {}
    for name, stored in names.items():
        tensor = expected[name]
        if not tensor.numel():
            continue
        # On the meta device there are no addresses, but storages.
        place = tensor.data_ptr() or tensor.untyped_storage()._cdata
        other = first.setdefault((place, tensor.shape, tensor.stride()), name)
        if other != name and not torch.equal(checkpoint[names[other]], checkpoint[stored]):
            raise ModelError(
                f"{other!r} and {name!r} are one tensor in the model, and two different ones in the checkpoint",
                "build the network without tied weights by --model or --model-arg",
            )


def _describe(
    absent: set[str],
    unexpected: set[str],
    misshapen: set[str],
    expected: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[str]:
    problems = []
    if absent:
        text = f"{len(absent)} missing ({some(sorted(absent), 3)}"
        close = nearest(sorted(absent)[0], unexpected, 1)
        problems.append(text + (f"; nearest in the file: {close[0]!r})" if close else ")"))
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({some(sorted(unexpected), 3)})")
    if misshapen:
        listed = [
            f"{n} {list(shapes[n])} instead of {list(expected[n].shape)}"
            for n in sorted(misshapen)[:3]
        ]
        problems.append(f"{len(misshapen)} of another shape ({', '.join(listed)})")
    return problems
