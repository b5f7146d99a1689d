"""Paths to the values of a result, and what its types say of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Struct

from curvcli.errors import UsageError, did_you_mean

Step = str | int
"""A field or key, or a place in a list; ``"*"`` stands for all of them."""
Kind = Literal["number", "integer", "text", "boolean"]
_NAMES = ("name", "index")
_STEP = re.compile(r"""(?:^|\.)([A-Za-z_]\w*)|\[(?:(-?\d+|\*)|["']([^"']+)["'])\]""")


@dataclass(frozen=True)
class Leaf:
    """What the types of a result say about a path."""

    steps: tuple[Step, ...]
    """The path, with ``value`` added where it names a value with its error."""
    kind: Kind
    choices: tuple[str, ...]
    """Texts that are possible; empty: any."""
    optional: bool


def written(steps: tuple[Step, ...]) -> str:
    """``top[0].value``."""
    text = ""
    for step in steps:
        if isinstance(step, int) or step == "*":
            text += f"[{step}]"
        elif step.isidentifier():
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


def parsed(text: str) -> tuple[str, tuple[Step, ...]]:
    """(question, steps) of ``hessian.top[0].value``.

    Raises:
        UsageError: it is no path.

    >>> parsed('gradients.layers["fc1"].dead_fraction')
    ('gradients', ('layers', 'fc1', 'dead_fraction'))
    """
    name, *rest = _STEP.findall(text)
    if not rest or _STEP.sub("", text) or not name[0]:
        raise UsageError(f"{text!r} names no figure", "write hessian.top[0].value, say")
    steps = (
        word or quoted or (place if place == "*" else int(place)) for word, place, quoted in rest
    )
    return name[0], tuple(steps)


def leaf(result: type, steps: tuple[Step, ...], where: str) -> Leaf:
    """What kind of value a path leads to, by the types alone.

    Raises:
        UsageError: there is no such field, or it is no single value.
    """
    kind, optional = _plain(msgspec.inspect.type_info(result))
    done: tuple[Step, ...] = ()
    for step in steps:
        shown = f"{where}.{written(done)}" if done else where
        inner, null = _plain(_descend(kind, step, shown))
        kind, optional, done = inner, optional or null, (*done, step)
    if isinstance(kind, msgspec.inspect.StructType) and "value" in _fields(kind):
        inner, null = _plain(_fields(kind)["value"])
        kind, optional, done = inner, optional or null, (*done, "value")
    found, choices = _simple(kind)
    if found is None:
        below = _choices(kind)
        raise UsageError(
            f"{where}.{written(steps)} is not a single value",
            f"go on to one of {', '.join(below)}"
            if below
            else "name one entry: [0], or [*] for all",
        )
    return Leaf(done, found, choices, optional)


def known_paths(result: type) -> list[str]:
    """The paths that rules may name, by the types alone; of lists the first entry, ``[*]`` where entries have names."""
    return [written(steps) for steps in _below(msgspec.inspect.type_info(result), ())]


def _below(kind: Any, done: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    kind, _ = _plain(kind)
    if isinstance(kind, msgspec.inspect.StructType):
        for name, inner in _fields(kind).items():
            yield from _below(inner, (*done, name))
    elif isinstance(kind, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
        inner, _ = _plain(kind.item_type)
        step: Step = "*" if any(n in _choices(inner) for n in _NAMES) else 0
        yield from _below(inner, (*done, step))
    elif _simple(kind)[0] is not None:
        yield done


def all_paths(result: Any, prefix: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    """Paths of all numbers, texts and booleans in a result; entries of lists by name where they have one."""
    if isinstance(result, Struct):
        for name in result.__struct_fields__:
            yield from all_paths(getattr(result, name), (*prefix, name))
    elif isinstance(result, dict):
        for key, value in result.items():
            yield from all_paths(value, (*prefix, key))
    elif isinstance(result, list | tuple):
        named = [getattr(item, "name", None) for item in result]
        unique = all(isinstance(n, str) for n in named) and len({*named}) == len(named)
        for i, item in enumerate(result):
            step = str(named[i]) if unique and named[i] else i
            yield from all_paths(item, (*prefix, step))
    elif isinstance(result, bool | int | float | str):
        yield prefix


def _plain(kind: Any) -> tuple[Any, bool]:
    """(the type without null and annotations, whether null is allowed)."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return _plain(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        rest = [t for t in kind.types if not isinstance(t, msgspec.inspect.NoneType)]
        inner, null = _plain(rest[0])
        return inner, null or len(rest) < len(kind.types)
    return kind, False


def _fields(kind: Any) -> dict[str, Any]:
    return {field.encode_name: field.type for field in kind.fields}


def _choices(kind: Any) -> list[str]:
    return list(_fields(kind)) if isinstance(kind, msgspec.inspect.StructType) else []


def _simple(kind: Any) -> tuple[Kind | None, tuple[str, ...]]:
    if isinstance(kind, msgspec.inspect.LiteralType):
        return "text", tuple(map(str, kind.values))
    simple: dict[type, Kind] = {
        msgspec.inspect.FloatType: "number",
        msgspec.inspect.IntType: "integer",
        msgspec.inspect.StrType: "text",
        msgspec.inspect.BoolType: "boolean",
    }
    return simple.get(type(kind)), ()


def _descend(kind: Any, step: Step, shown: str) -> Any:
    """The type of a field, a key or an entry."""
    if isinstance(kind, msgspec.inspect.StructType):
        fields = _fields(kind)
        if step in fields:
            return fields[str(step)]
        raise UsageError(
            f"{shown} has no field {step!r}.{did_you_mean(str(step), fields)}",
            f"it has {', '.join(fields)}",
        )
    if isinstance(kind, msgspec.inspect.DictType):
        return kind.value_type
    if isinstance(kind, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
        inner, _ = _plain(kind.item_type)
        named = any(n in _choices(inner) for n in _NAMES[:1])
        if isinstance(step, int) or step == "*" or named:
            return kind.item_type
        raise UsageError(
            f"{shown} is a list: {step!r} is no place in it", f"write {shown}[0], or [*] for all"
        )
    if isinstance(kind, msgspec.inspect.TupleType) and isinstance(step, int):
        if -len(kind.item_types) <= step < len(kind.item_types):
            return kind.item_types[step]
        raise UsageError(f"{shown} has {len(kind.item_types)} entries, no [{step}]")
    raise UsageError(f"{shown} is a single value: it has no {step!r}", f"write {shown}")
