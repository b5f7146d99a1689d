"""Every data source -> frozen batches: read once, copied, hashed."""

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvcli.errors import DataError, did_you_mean, some
from curvcli.loading.checkpoints.checkpoint import check_plain
from curvcli.loading.data.arrays import read_file
from curvcli.loading.data.counts import is_samples, lengths
from curvcli.loading.data.pairs import TARGET_NAMES
from curvcli.loading.data.tabular import is_table
from curvcli.loading.data.text import is_text
from curvcli.loading.references import resolve
from curvcli.loading.spec import is_reference
from curvcli.machine.containers import mapped, tensors_in
from curvcli.machine.memory import check_fits, not_of_memory
from curvcli.objective.batch import Batch

ONE_OR_MORE = "a tensor, tuple or dict is one batch; a list, an iterator, a DataLoader or a dataset is several"
"""How Python objects are taken as data."""


@dataclass(frozen=True)
class Readers:
    """Readers of data that the model has a say in."""

    text: Callable[[Path], Iterable[Any]]
    table: Callable[[Path], dict[str, Any]]
    images: Callable[[Path], Iterable[Any]]
    prepare: Callable[[dict[str, Any]], dict[str, Any]]
    """Pixels in named tensors -> what the model takes."""
    chosen: Callable[[Iterable[str]], list[str]]
    """Of the names in a file, those that are used."""


def read_batches(
    source: Any,
    *,
    batch_size: int | None = None,
    max_batches: int | None = None,
    unsafe_pickle: bool = False,
    readers: "Readers | None" = None,
    memory: int | None = None,
    stop: Callable[[], object] = lambda: None,
    opaque: bool = False,
) -> list[Any]:
    """The raw batches: containers of tensors on the CPU, or whatever objects an iterable yields.

    Args:
        source: ``.npz``, ``.npy``, ``.safetensors`` or ``.pt`` with tensors, or ``module:attribute``: an object, or a
            function that returns one; or the object itself. A tensor, tuple or dict is one batch; a list, an iterator,
            a DataLoader or a
            dataset is several.
        batch_size: samples per batch; tensors from a file are one batch without it.
        max_batches: stop after so many.
        unsafe_pickle: let a ``.pt`` file run code.
        readers: of the kinds of data that the model has a say in.
        memory: bytes that the process may use in all.
        stop: asked after each batch; a reason ends the reading.
        opaque: the batches are for an ``--objective``, which knows what (tensor, number) is.

    Raises:
        DataError: the source is missing, damaged, empty, or its tensors do not fit each other.
    """
    if isinstance(source, str):
        raw = _raw(source, batch_size, unsafe_pickle, readers, opaque)
    else:
        raw, source = _iterate(source, "the data", batch_size, opaque), "the data"
    batches: list[Any] = []
    try:
        for batch in itertools.islice(raw, max_batches):
            size = sum(t.numel() * t.element_size() for t in tensors_in(batch) if not t.is_nested)
            check_fits(size, memory, f"a copy of {source}")
            batches.append(freeze(batch))
            if stop() is not None:
                break
    except RecursionError:
        raise DataError(
            f"a batch of {source} is nested too deeply, or contains itself",
            "pass tensors, tuples or dicts",
        ) from None
    if not batches:
        raise DataError(f"{source} has no batches", "pass data with at least one sample")
    return batches


def _raw(
    source: str,
    batch_size: int | None,
    unsafe_pickle: bool,
    readers: "Readers | None",
    opaque: bool,
) -> Iterator[Any]:
    """The batches as they come."""
    if is_reference(source):
        yield from _iterate(resolve(source, "--data", DataError), source, batch_size, opaque)
    elif readers is not None and is_text(source):
        yield from readers.text(Path(source))
    elif readers is not None and Path(source).is_dir():
        yield from readers.images(Path(source))
    elif readers is not None and is_table(source):
        yield from _cut(readers.table(Path(source)), batch_size, source)
    else:
        tensors = read_file(Path(source), unsafe_pickle, readers.chosen if readers else list)
        if readers is not None and isinstance(tensors, dict):
            tensors = readers.prepare(tensors)
        yield from _cut(tensors, batch_size, source)


def freeze(data: Any) -> Any:
    """A copy on the host of the tensors and arrays in nested containers of any type; other objects as they are."""
    return mapped(data, _frozen)


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        _check_tensor(value)
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(np.ascontiguousarray(value).copy())
    return value


def _check_tensor(tensor: Tensor) -> None:
    check_plain(tensor, "a tensor in the data", DataError)
    if tensor.is_quantized:
        raise DataError("a tensor in the data is quantised", "pass tensor.dequantize()")


def fingerprint(batches: Sequence[Any]) -> str:
    """SHA-256 over the tensors' shapes, dtypes and bytes, in order."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in tensors_in(batch):
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.detach().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def chosen_names(
    names: Iterable[str], input_keys: Sequence[str], target_key: str | None
) -> list[str]:
    """Of the names in a file, those that are used: all, unless the inputs are named.

    Without the name of the target, what could be one is used too.
    """

    def targets(name: str) -> bool:
        if target_key is not None:
            return name == target_key
        return name in TARGET_NAMES or "label" in name or name.endswith("_positions")

    return [n for n in names if not input_keys or n in input_keys or targets(n)]


def arrange(
    raw: Any, input_keys: Sequence[str] = (), target_key: str | None = None
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """A raw batch as (positional arguments of the model, keyword arguments, targets or None).

    A dict: the target is ``target_key`` or the usual name; one input is passed by position, several by
    name. A tuple: the last entry is the target. A tensor: there is no target.

    Raises:
        DataError: a named key is not there, or nothing looks like an input.
    """
    if isinstance(raw, Tensor):
        return (raw,), {}, None
    if isinstance(raw, Mapping):
        return _arrange_mapping(dict(raw), input_keys, target_key)
    if isinstance(raw, tuple | list):
        if input_keys or target_key:
            raise DataError(
                "--input-key and --target-key need batches with names",
                "yield dicts, or drop the flags",
            )
        if len(raw) == 1:
            return (raw[0],), {}, None
        return tuple(raw[:-1]), {}, raw[-1]
    raise DataError(
        f"a batch is a {type(raw).__name__}: tensors, tuples and dicts are understood",
        f"{ONE_OR_MORE}; use --objective for batches of any other kind",
    )


def unpacked(forward: Callable[..., Any], positional: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tuple of inputs, ``((x, t), y)``, as the arguments of a forward that cannot be called with fewer.

    >>> unpacked(lambda x, t: None, ((1, 2),))
    (1, 2)
    >>> unpacked(lambda pair: None, ((1, 2),))
    ((1, 2),)
    """
    if len(positional) != 1 or type(positional[0]) not in (tuple, list):
        return positional
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        asked = [p for p in inspect.signature(forward).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        return positional
    needed = sum(p.default is inspect.Parameter.empty for p in asked)
    found = tuple(positional[0])
    return found if 1 < needed <= len(found) <= len(asked) else positional


def by_position(
    forward: Callable[..., Any], positional: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The one tensor of a dict whose names a forward does not know, as its first argument.

    Data sets yield paths and identifiers beside an image, under names of their own.

    >>> by_position(lambda x: None, (), {"image": torch.ones(1), "path": ["a.png"]})
    ((tensor([1.]),), {})
    """
    held = [key for key, value in keywords.items() if next(tensors_in(value), None) is not None]
    try:
        asked = inspect.signature(forward).parameters
    except (TypeError, ValueError):
        return positional, keywords
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in asked.values())
    if positional or len(held) != 1 or takes_all or any(key in asked for key in keywords):
        return positional, keywords
    return (keywords[held[0]],), {}


def names_of(raw: Any, positional: tuple[Any, ...]) -> tuple[str, ...]:
    """What a raw batch calls the arguments that are passed by position; nothing where they have no names."""
    if not isinstance(raw, Mapping):
        return ()
    return tuple(str(key) for p in positional for key, value in raw.items() if value is p)


def as_batch(data: Any, opaque: bool) -> Batch:
    """Count the samples of arranged or opaque data.

    Args:
        data: what the loss will be given.
        opaque: an ``--objective`` batch: one sample that cannot be cut.

    Raises:
        DataError: empty, or tensors with different numbers of samples.
    """
    if opaque:
        return Batch(data, 1, splittable=False)
    sizes = {t.shape[0] if t.dim() else 1 for t in tensors_in(data)}
    if not sizes:
        raise DataError("a batch contains no tensors", "yield tensors, or use --objective")
    if 0 in sizes:
        raise DataError("a batch is empty: 0 samples", "pass data with at least one sample")
    first = next(tensors_in(data))
    if len(sizes) > 1:
        # Something without a batch axis (a mask, a length) travels along: such a batch stays whole.
        return Batch(data, first.shape[0] if first.dim() else 1, splittable=False)
    return Batch(data, sizes.pop())


def _arrange_mapping(
    raw: dict[str, Any], input_keys: Sequence[str], target_key: str | None
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    for key in (*input_keys, *([target_key] if target_key else [])):
        if key not in raw:
            raise DataError(
                f"the data has no {key!r}.{did_you_mean(key, raw)}",
                f"it has {some(map(str, raw), 8)}",
            )
    target = target_key or next((n for n in TARGET_NAMES if n in raw and n not in input_keys), None)
    inputs = list(input_keys) or [k for k in raw if k != target]
    if not inputs:
        raise DataError(
            f"the data has no input, only {some(map(str, raw), 8)}", "name one by --input-key"
        )
    targets = raw[target] if target else None
    if len(inputs) == 1:
        return (raw[inputs[0]],), {}, targets
    return (), {key: raw[key] for key in inputs}, targets


def _cut(tensors: Any, batch_size: int | None, source: str) -> Iterator[Any]:
    listed = list(tensors_in(tensors))
    for tensor in listed:
        _check_tensor(tensor)
    sizes = {t.shape[0] if t.dim() else 1 for t in listed}
    if not listed or max(sizes) == 0:
        if not listed and isinstance(tensors, Mapping) and tensors:
            raise DataError(
                f"{source} holds no tensors or arrays under {some(map(str, tensors), 8)}",
                "give arrays or tensors, inputs and targets by name",
            )
        raise DataError(f"{source} is empty", "pass data with at least one sample")
    if batch_size is None:
        yield tensors
        return
    if len(sizes) > 1:
        raise DataError(
            f"the arrays in {source} have different numbers of samples: {lengths(tensors)}",
            "drop --batch-size, or give every tensor one row per sample",
        )
    whole = Batch(tensors, sizes.pop())
    for piece in whole.pieces(batch_size):
        yield piece.data


def _iterate(found: Any, source: str, batch_size: int | None, opaque: bool) -> Iterator[Any]:
    if callable(found) and not isinstance(found, Tensor) and not hasattr(found, "__iter__"):
        try:
            found = found()
        except Exception as error:
            not_of_memory(error)
            raise DataError(
                f"{source} failed: {type(error).__name__}: {error}", "--verbose shows the traceback"
            ) from error
    if isinstance(found, dict) and {"data", "target"} <= found.keys():
        # A data set of scikit-learn, whose other entries are descriptions.
        found = {"data": found["data"], "target": found["target"]}
    if isinstance(found, Tensor | np.ndarray | Mapping) or (isinstance(found, tuple) and found):
        found = freeze(found)
        yield from _cut(found, batch_size, source)
        return
    mapped_style = isinstance(found, torch.utils.data.Dataset) and not isinstance(
        found, torch.utils.data.IterableDataset
    )
    if mapped_style or (not opaque and is_samples(found)):
        found = torch.utils.data.DataLoader(found, batch_size=batch_size or 256)
    if not isinstance(found, Iterable) and not hasattr(found, "__getitem__"):
        raise DataError(
            f"{source} gave a {type(found).__name__}, not something to iterate over",
            f"name something else: {ONE_OR_MORE}",
        )
    if batch_size is not None and not isinstance(found, torch.utils.data.DataLoader):
        found = _resize(found, batch_size)
    yield from found


def _resize(found: Iterable[Any], batch_size: int) -> Iterator[Any]:
    for data in found:
        batch = as_batch(freeze(data), opaque=False)
        for piece in batch.pieces(batch_size):
            yield piece.data
