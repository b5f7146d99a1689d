"""PyTorch files: pickles, read without the code they may hold, and the state_dict somewhere in them."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvcli.errors import CheckpointError, some
from curvcli.files import check_regular
from curvcli.loading.checkpoints.archive import EXPANSION_BYTES
from curvcli.loading.checkpoints.checkpoint import (
    Checkpoint,
    check_plain,
    tensor_infos,
)
from curvcli.loading.checkpoints.selection import NESTED, is_extra, select
from curvcli.loading.checkpoints.sources import in_memory
from curvcli.machine.memory import not_of_memory


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
            found = re.search(r"GLOBAL ([\w.]+)", reason)
            needed = f"it makes {found[1]} objects" if found else _shorten(reason or str(error))
            plain = (
                f"tensors alone, torch.save((x, y), {path.name!r})"
                if what == "data file"
                else f"the weights alone, torch.save(model.state_dict(), {path.name!r})"
            )
            raise CheckpointError(
                f"the {what} {path.name} is a pickle that needs to run code: {needed}",
                f"save {plain}; or, if you trust the file, pass --unsafe-pickle",
            ) from None
        raise CheckpointError(
            f"the {what} {path.name} is damaged: {_shorten(str(error))}", "copy it again"
        ) from None
    except Exception as error:  # a damaged pickle makes its parser raise anything
        not_of_memory(error)
        if unsafe_pickle and isinstance(error, ImportError | AttributeError):
            raise CheckpointError(
                _missing_code(error, f"the {what} {path.name}"),
                "install it here, or save the model's state_dict() where it is installed",
            ) from None
        raise CheckpointError(
            f"the {what} {path.name} is truncated or damaged: {_shorten(str(error)) or type(error).__name__}",
            "copy it again",
        ) from None


def _missing_code(error: Exception, what: str) -> str:
    """What a pickle that may run its code looks for in vain."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{what} needs the Python package {error.name.partition('.')[0]!r}, which is not installed here"
    return f"{what} needs Python code that is not here: {_shorten(str(error))}"


def _shorten(text: str, limit: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def read_torch(path: Path, unsafe_pickle: bool, weights: str | None = None) -> Checkpoint:
    """Open a file written by ``torch.save``: a state_dict, a dictionary that holds one, or a whole module.

    Args:
        path: the file.
        unsafe_pickle: let it run the code it contains.
        weights: which of several sets of weights.

    Raises:
        CheckpointError: it is damaged, needs code to be run, or holds no weights.
    """
    content = load_torch(path, unsafe_pickle, "checkpoint")
    module = content if isinstance(content, torch.nn.Module) else None
    notes = [] if module is None else ["the checkpoint is a whole pickled module"]
    try:
        tensors, where, others = select(content, weights, path.name)
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
    notes += found_under(where, others)
    extra = {n: tensors.pop(n) for n in list(tensors) if is_extra(n)}
    _check_sizes(tensors, path)
    return Checkpoint(
        path,
        "torch",
        tensor_infos(tensors),
        in_memory(tensors),
        notes=notes,
        program=module if weights is None else None,
        extra=extra,
    )


def found_under(where: str, others: list[str]) -> list[str]:
    """Notes on where the weights were found, and what else there is."""
    if not where:
        return []
    more = f"; --weights takes another: {some(others)}" if others else ""
    return [f"the weights were found under {where!r}{more}"]


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
