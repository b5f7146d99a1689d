"""Names in a checkpoint -> names in a model: what wrappers put into them is found by names and shapes."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from curvcli.errors import ModelError, some

Shapes = Mapping[str, tuple[int, ...]]

_WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module"
_WRAPPED = re.compile(rf"(?<![^.])(?:{_WRAPPERS})\.")
_PARALLEL = re.compile(rf"(?<![^.])(?:{_WRAPPERS}|module)\.")
# What DataParallel and Lightning put first: removed also where the rest fits in part only.
_USUAL = re.compile(r"(?:module\.|model\.)+")


class Names(NamedTuple):
    """How the tensors of a checkpoint are called in the model."""

    stored: dict[str, str]
    """Names in the model, or as near to them as it gets -> names in the checkpoint."""
    notes: list[str]


def match_names(stored: Shapes, expected: Mapping[str, Tensor]) -> Names:
    """The one way of removing prefixes and wrappers (or putting a prefix first) that covers the model.

    Args:
        stored: shapes of the tensors in the checkpoint.
        expected: the model's tensors.

    Raises:
        ModelError: several parts of the checkpoint cover the model.
    """
    cleaned = list(_cleaned(list(stored)))
    for names, removed in cleaned:
        shapes = {n: stored[o] for n, o in names.items()}
        found = list(_covering(shapes, expected))
        if ("", "") in found or len(found) == 1:
            return _named(names, removed, *(("", "") if ("", "") in found else found[0]), expected)
        if found:
            listed = some((prefix or added).rstrip(".") for prefix, added in found)
            raise ModelError(
                f"{len(found)} parts fit by names and shapes: {listed}",
                "choose the part of the checkpoint by --weights, or the part of the model by --model",
            )
    names, removed, prefix = max(
        ((n, r, p) for n, r in cleaned for p in _usual(list(n))),
        key=lambda way: sum(name.removeprefix(way[2]) in expected for name in way[0]),
    )
    return _named(names, removed, prefix, "", expected)


def _cleaned(stored: list[str]) -> Iterator[tuple[dict[str, str], str]]:
    """Names without the wrappers inside them -> stored names, and what was removed."""
    yield {n: n for n in stored}, ""
    for pattern in (_WRAPPED, _PARALLEL):
        removed = sorted({m for n in stored for m in pattern.findall(n)})
        names = {pattern.sub("", n): n for n in stored}
        if removed and len(names) == len(stored):
            yield names, some(removed)


def _covering(shapes: Shapes, expected: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(prefix to remove, prefix to put first) with which every tensor of the model is there."""
    sizes = {n: tuple(t.shape) for n, t in expected.items()}
    removable = {p for n, s in shapes.items() for p, rest in _cuts(n) if sizes.get(rest) == s}
    for prefix in sorted(removable):
        if _covers({e for e, s in sizes.items() if shapes.get(prefix + e) == s}, expected):
            yield prefix, ""
    addable = {q for e, s in sizes.items() for q, rest in _cuts(e) if shapes.get(rest) == s}
    for added in sorted(addable - {""}):
        if _covers({added + n for n, s in shapes.items() if sizes.get(added + n) == s}, expected):
            yield "", added


def _covers(names: set[str], expected: Mapping[str, Tensor]) -> bool:
    """Whether a tensor of the model that is not among them is tied to one that is, or of no consequence."""
    return not missing(names, names, expected)


def missing(known: set[str], loaded: set[str], expected: Mapping[str, Tensor]) -> set[str]:
    """Tensors of the model that are not known, and not tied to one that is loaded."""
    storages = {expected[n].untyped_storage().data_ptr() for n in loaded}
    return {
        n
        for n in expected.keys() - known
        if expected[n].untyped_storage().data_ptr() not in storages
        and not n.endswith("num_batches_tracked")
    }


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """The name cut at each dot: what would be removed, and the rest."""
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _usual(names: list[str]) -> list[str]:
    """No prefix, and the usual ones that occur."""
    found = {p for n in names for p, _ in _cuts(n) if _USUAL.fullmatch(p)}
    return ["", *sorted(found, key=lambda p: (len(p), p))]


def _named(
    names: Mapping[str, str], removed: str, prefix: str, added: str, expected: Mapping[str, Tensor]
) -> Names:
    inside = {added + n.removeprefix(prefix): o for n, o in names.items() if n.startswith(prefix)}
    rest = {n: o for n, o in names.items() if not n.startswith(prefix)}
    beside = {n: o for n, o in rest.items() if n in expected and n not in inside}
    outside = sorted(o for n, o in rest.items() if n not in beside)
    notes = []
    if removed:
        notes.append(f"{removed} was removed from within the names in the checkpoint")
    if prefix:
        notes.append(f"the prefix {prefix!r} was removed from the names in the checkpoint")
    if added:
        notes.append(f"the prefix {added!r} of the model is not in the checkpoint")
    if outside:
        notes.append(
            f"{len(outside)} tensors of the checkpoint without the prefix {prefix!r} are left out: {some(outside, 3)}"
        )
    return Names(inside | beside, notes)
