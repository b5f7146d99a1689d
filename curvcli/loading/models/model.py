"""A factory and named tensors -> the nn.Module that holds them."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.errors import ModelError, nearest, some
from curvcli.loading.checkpoints.checkpoint import Checkpoint
from curvcli.loading.checkpoints.quantised import dequantised, scales_of
from curvcli.loading.models.guess import build_auto
from curvcli.loading.models.library import build_from_library, is_library
from curvcli.loading.references import resolve
from curvcli.machine.memory import not_of_memory

PREFIXES = ("module.", "_orig_mod.", "model.")


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
        return copy.deepcopy(found)
    if not callable(found):
        raise ModelError(
            f"{reference} is a {type(found).__name__}, not a module, class or function",
            "name a factory",
        )
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise ModelError(
            f"{reference} cannot be called with {dict(arguments)}: {error}",
            "set them by --model-arg name=value",
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


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, allow_partial: bool = False
) -> list[str]:
    """Copy the checkpoint's tensors into ``model``; returns notes on what was not literal.

    Prefixes of wrappers (DataParallel, torch.compile, Lightning) are removed where that fits better.
    A missing key that is tied to a loaded one is not missing.

    Raises:
        ModelError: keys are missing, unexpected or of another shape, and ``allow_partial`` is off; or
            nothing matches at all.
    """
    scales = scales_of(checkpoint)
    expected = model.state_dict()
    stored = {i.name: i for i in checkpoint.tensors if i.name not in scales.values()}
    stripped = _best_prefix(list(stored), expected)
    names = {_strip(name, stripped): name for name in stored}
    notes = (
        [f"the prefix {stripped!r} was removed from the names in the checkpoint"]
        if stripped
        else []
    )

    matching = names.keys() & expected.keys()
    misshapen = {n for n in matching if tuple(expected[n].shape) != stored[names[n]].shape}
    loadable = matching - misshapen
    if not loadable:
        raise ModelError(
            f"no tensor of the checkpoint fits the model: it has {some(sorted(stored), 3)}; "
            f"the model expects {some(sorted(expected), 3)}",
            "check that --model builds the network this checkpoint was saved from",
        )
    loaded_storage = {expected[n].untyped_storage().data_ptr() for n in loadable}
    missing = {
        n
        for n in expected.keys() - names.keys()
        if expected[n].untyped_storage().data_ptr() not in loaded_storage
        and not n.endswith("num_batches_tracked")
    }
    unexpected = names.keys() - expected.keys()
    problems = _describe(
        missing, unexpected, misshapen, expected, {n: stored[names[n]].shape for n in matching}
    )
    if problems and not allow_partial:
        raise ModelError(
            "the checkpoint does not fit the model: " + "; ".join(problems),
            "mend --model or --model-arg, or pass --allow-partial to go on with what fits",
        )
    if problems:
        notes.append("loaded in part: " + "; ".join(problems))
    original = {stored_name: n for n, stored_name in names.items()}
    with torch.no_grad():
        for stored_name, tensor in checkpoint.items():
            name = original.get(stored_name)
            if name in loadable:
                if stored_name in scales:
                    scale = checkpoint[scales[stored_name]]
                    _copy(expected[name], dequantised(tensor, scale, stored_name), name)
                else:
                    _copy(expected[name], tensor, name)
    if scales:
        notes.append(
            f"{len(scales)} float8 tensors are multiplied by the scales stored beside them"
        )
    return notes


def compute_dtype(
    model: nn.Module, checkpoint: Checkpoint | None, asked: str
) -> tuple[torch.dtype, str | None]:
    """The dtype to compute in, and a note when that is not the stored one."""
    if asked != "auto":
        dtype: torch.dtype = getattr(torch, asked)
        return dtype, None
    stored = (
        {i.dtype for i in checkpoint.tensors}
        if checkpoint
        else {_short(p.dtype) for p in model.parameters()}
    )
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


def _strip(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def _best_prefix(stored: list[str], expected: Mapping[str, Tensor]) -> str:
    """The prefix whose removal lets the most names match; none when that is as good."""
    candidates = {""}
    for _ in range(3):
        candidates |= {
            c + p for c in candidates for p in PREFIXES if any(n.startswith(c + p) for n in stored)
        }
    return max(
        sorted(candidates, key=len),
        key=lambda c: sum(_strip(n, c) in expected for n in stored),
    )


def _describe(
    missing: set[str],
    unexpected: set[str],
    misshapen: set[str],
    expected: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[str]:
    problems = []
    if missing:
        text = f"{len(missing)} missing ({some(sorted(missing), 3)}"
        close = nearest(sorted(missing)[0], unexpected, 1)
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
