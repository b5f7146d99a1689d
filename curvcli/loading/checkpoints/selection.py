"""Which of the tensors in a file are the weights: found under a usual name, or chosen by ``--weights``."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from curvcli.errors import CheckpointError, did_you_mean, some

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

Tensors = dict[str, Tensor]
T = TypeVar("T")


def select(content: Any, weights: str | None, name: str) -> tuple[Tensors, str, list[str]]:
    """The weights in what a file holds, where they were found, and where others are.

    Args:
        content: nested mappings with tensors; a module stands for its state_dict.
        weights: what the user chose: a key, a path of keys joined by dots, or the first part of the tensors' names.
        name: of the file, for messages.

    Raises:
        CheckpointError: nothing is found, or several sets of weights of which none has a usual name.
    """
    found = dict(_candidates(content, ""))
    if weights is not None:
        chosen, where = choose(
            {f"{p}.{n}".lstrip("."): t for p, ts in found.items() for n, t in ts.items()},
            weights,
            name,
            found,
        )
        return chosen, where, []
    large = {
        p: ts
        for p, ts in found.items()
        if any(isinstance(t, Tensor) and t.dim() for t in ts.values())
    } or found
    usual = sorted((p for p in large if all(k in NESTED for k in _keys(p))), key=_rank)
    if not usual and len(large) > 1:
        raise CheckpointError(
            f"{name} holds several sets of weights: {some(large, 12)}",
            "choose one by --weights KEY",
        )
    where = usual[0] if usual else next(iter(large), "")
    return large.get(where, {}), where, [p for p in large if p and p != where]


def choose(
    tensors: Mapping[str, T], weights: str, name: str, known: Iterable[str] = ()
) -> tuple[dict[str, T], str]:
    """The tensors whose names start with a key, or have it further inside in one place only.

    Args:
        tensors: by their whole names.
        weights: the key.
        name: of the file, for messages.
        known: sets of weights to list where there is no such key.

    Raises:
        CheckpointError: there is no such key, or it is in several places.
    """
    found = {p for n in tensors if (p := _place(n, weights)) is not None}
    places = sorted(found, key=lambda p: (len(p), p))
    if weights in places:
        places = [weights]
    if len(places) == 1:
        cut = len(places[0]) + 1
        return {n[cut:]: t for n, t in tensors.items() if n.startswith(f"{places[0]}.")}, places[0]
    if places:
        raise CheckpointError(
            f"{name} has {weights!r} in {len(places)} places: {some(places)}",
            f"write all of it: --weights {places[0]}",
        )
    listed = list(dict.fromkeys([*filter(None, known), *(n.partition(".")[0] for n in tensors)]))
    raise CheckpointError(
        f"{name} has no weights under {weights!r}.{did_you_mean(weights, listed)}",
        f"there are {some(listed, 12)}",
    )


def is_extra(name: str) -> bool:
    """Whether it names what a module's `get_extra_state` gave."""
    return name.rpartition(".")[2] == "_extra_state"


def _place(name: str, weights: str) -> str | None:
    """The start of a tensor's name up to the key, if it has the key as whole parts."""
    at = f".{name}".find(f".{weights}.")
    return None if at < 0 else name[: at + len(weights)]


def _candidates(content: Any, where: str) -> Iterator[tuple[str, Tensors]]:
    """Mappings that hold tensors by name; states of optimizers are none."""
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
        return
    if "param_groups" in content:
        return
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor) or is_extra(k)}
    if tensors:
        yield where, tensors
    for key, inner in content.items():
        yield from _candidates(inner, f"{where}.{key}".lstrip("."))


def _keys(place: str) -> list[str]:
    return place.split(".") if place else []


def _rank(place: str) -> tuple[bool, list[int]]:
    """Usual names in their order; tensors beside them come last."""
    return not place, [NESTED.index(k) for k in _keys(place)]
