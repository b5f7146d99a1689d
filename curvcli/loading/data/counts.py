"""How many samples the parts of a batch have, and whether they have targets."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from curvcli.errors import DataError, some
from curvcli.loading.data.pairs import TARGET_NAMES, pairs
from curvcli.machine.containers import tensors_in
from curvcli.objective.batch import Batch


def check_sizes(batches: Sequence[Batch], fixed: int | None) -> None:
    """Every batch has the number of samples that a program was exported for, if it was for one.

    Raises:
        DataError: one has another.
    """
    wrong = next((batch.size for batch in batches if fixed and batch.size != fixed), None)
    if wrong is not None:
        raise DataError(
            f"the program was exported for batches of {fixed} samples, and one has {wrong}",
            f"pass --batch-size {fixed} (and --max-batches, to leave out a smaller last one), or export it "
            "with dynamic_shapes",
        )


def check_targets(raw: Any, targets: Any, loss: str) -> None:
    """A batch with names has targets, and as many of them as inputs.

    Raises:
        DataError: none has a usual name, or their number is another.
    """
    if not isinstance(raw, Mapping):
        return
    named = {str(n): v for n, v in raw.items() if isinstance(v, Tensor) and v.dim()}
    if targets is None:
        like = [n for n, v in named.items() if v.dim() == 1 and not v.is_floating_point()]
        raise DataError(
            f"the loss {loss} needs targets, and none of the data is called {', '.join(TARGET_NAMES[:4])}: "
            f"it has {some(map(str, raw), 8)}",
            _how_to_name(named, like)
            + (
                "; a loss without targets is a function (model, batch) for --objective"
                if ":" in loss
                else ""
            ),
        )
    label = next((n for n, v in named.items() if v.shape == getattr(targets, "shape", None)), None)
    sizes = {v.shape[0] for n, v in named.items() if n != label}
    if label is not None and len(sizes) == 1 and named[label].shape[0] not in sizes:
        raise DataError(
            f"the arrays of the data have different numbers of samples: {lengths(raw)}",
            "give every array one row per sample",
        )


def _how_to_name(names: Collection[str], like: list[str]) -> str:
    """Of several parts of the data, which flag takes which; else what looks like numbers of classes."""
    known = pairs(names)
    if known:
        each = [f"--target-key {t} (inputs: {', '.join(inputs)})" for t, inputs in known.items()]
        return f"say which part of the data: {' or '.join(each)}"
    if len(names) == 1:
        return "add them to the data as an array called y"
    return f"name them by --target-key {(like or ['NAME'])[0]}"


def lengths(tensors: Any) -> str:
    """How many samples each array has: ``'x' 100, 'y' 99``."""
    named = tensors.items() if isinstance(tensors, Mapping) else enumerate(tensors_in(tensors))
    return ", ".join(
        f"{str(name)!r} {t.shape[0] if t.dim() else 1}"
        for name, value in named
        for t in tensors_in(value)
    )


def is_samples(found: Any) -> bool:
    """Whether it is a list of samples (tensor, plain number), as a data set is, and not of batches.

    >>> import torch
    >>> is_samples([(torch.ones(3), 1), (torch.ones(3), 0)]), is_samples([torch.ones(2, 3)])
    (True, False)
    """
    return isinstance(found, list) and all(
        isinstance(sample, tuple) and len(sample) > 1 and isinstance(sample[-1], int | float)
        for sample in found
    )
