"""PyTorch files: pickles, read without the code they may hold, and the state_dict somewhere in them."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvcli.errors import CheckpointError, some
from curvcli.files import check_regular
from curvcli.loading.checkpoints.archive import EXPANSION_BYTES
from curvcli.loading.checkpoints.checkpoint import Checkpoint, check_plain, tensor_infos
from curvcli.machine.memory import not_of_memory

NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "ema",
    "ema_state_dict",
    "params",
    "weights",
    "net",
)


def load_torch(path: Path, unsafe_pickle: bool, what: str) -> Any:
    """``torch.load`` on the CPU; code inside runs only with ``unsafe_pickle``.

    Raises:
        CheckpointError: the file is damaged, or needs code to be run.
    """
    check_regular(path, CheckpointError, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on protocols; damage is reported below
            return torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)
    except pickle.UnpicklingError as error:
        # torch puts its long advice after the first sentence; the name of the global is what matters.
        reason = next(
            (line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line),
            "",
        ).strip()
        if "GLOBAL" in reason or "Unsupported" in reason or "weights_only" in str(error).lower():
            raise CheckpointError(
                f"the {what} {path.name} is a pickle that needs to run code: {_shorten(reason or str(error))}",
                "if you trust its origin, pass --unsafe-pickle; better: save a state_dict as safetensors",
            ) from None
        raise CheckpointError(
            f"the {what} {path.name} is damaged: {_shorten(str(error))}", "copy it again"
        ) from None
    except Exception as error:  # a damaged pickle makes its parser raise anything
        not_of_memory(error)
        raise CheckpointError(
            f"the {what} {path.name} is truncated or damaged: {_shorten(str(error)) or type(error).__name__}",
            "copy it again",
        ) from None


def _shorten(text: str, limit: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def read_torch(path: Path, unsafe_pickle: bool) -> Checkpoint:
    """Open a file written by ``torch.save``: a state_dict, a dictionary that holds one, or a whole module.

    Raises:
        CheckpointError: it is damaged, needs code to be run, or holds no weights.
    """
    content = load_torch(path, unsafe_pickle, "checkpoint")
    notes: list[str] = []
    module = content if isinstance(content, torch.nn.Module) else None
    if module is not None:
        content = module.state_dict()
        notes.append("the checkpoint is a whole pickled module")
    try:
        tensors, where = _find_state_dict(content)
    except RecursionError:
        raise CheckpointError(
            f"{path.name} is nested too deeply, or contains itself", "save the model's state_dict()"
        ) from None
    if not tensors and isinstance(content, dict) and content.keys() >= {"state", "param_groups"}:
        raise CheckpointError(
            f"{path.name} holds the state of an optimizer, without the weights",
            "name the file with the model's state_dict, or the directory it lies in",
        )
    if not tensors:
        keys = (
            some(str(k) for k in content) if isinstance(content, dict) else type(content).__name__
        )
        raise CheckpointError(
            f"no weights found in {path.name}; it contains {keys}",
            f"expected a state_dict, plain or under one of {', '.join(NESTED)}",
        )
    if where:
        notes.append(f"the weights were found under {where!r}")
    _check_sizes(tensors, path)
    return Checkpoint(
        path, "torch", tensor_infos(tensors), notes=notes, program=module, loaded=tensors
    )


def _check_sizes(tensors: dict[str, Tensor], path: Path) -> None:
    """No tensor repeats a small storage until it would fill the memory."""
    for name, tensor in tensors.items():
        check_plain(tensor, f"{path.name}: {name!r}", CheckpointError)
        if tensor.is_quantized:
            continue
        size = tensor.numel() * tensor.element_size()
        if size > max(EXPANSION_BYTES, tensor.untyped_storage().nbytes()):
            raise CheckpointError(
                f"{path.name}: {name!r} would take {size} bytes but stores {tensor.untyped_storage().nbytes()}",
                "save its values: tensor.contiguous()",
            )


def _find_state_dict(content: Any, where: str = "") -> tuple[dict[str, Tensor], str]:
    """The first mapping of names to tensors, at the top or under a usual key."""
    if not isinstance(content, dict):
        return {}, where
    if hasattr(content, "keys") and content and all(isinstance(k, str) for k in content):
        tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
        nested = [k for k in NESTED if isinstance(content.get(k), dict | torch.nn.Module)]
        if tensors and not nested:
            return tensors, where
        for key in nested:
            inner = content[key]
            inner = inner.state_dict() if isinstance(inner, torch.nn.Module) else inner
            found, place = _find_state_dict(inner, f"{where}.{key}".lstrip("."))
            if found:
                return found, place
        return tensors, where
    return {}, where
