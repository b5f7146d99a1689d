"""The figures in a result, by path, each with the interval that it lies in.

Which interval belongs to a number is told by the names beside it, for every analysis alike:

========================================  =====================================================
beside a field ``x``                      interval
========================================  =====================================================
``x_residual`` (``residual`` of a value)  x ± residual: certain
``x_standard_error``, ``x_error``         x ± z · error, z of the confidence asked for (Student's t where the
                                          struct has ``degrees_of_freedom``)
``standard_error``, ``error`` of a value  the same; ``error`` of a struct belongs to all its numbers
``x_interval``                            the interval as given, before an error
``reach`` beside extreme eigenvalues      λ_max up to ``reach.upper``, λ_min down to ``reach.lower``
nothing, an integer, a text, a boolean    exact
nothing, a float                          x ± 32 eps |x|: rounding
========================================  =====================================================

Where the error of a number is null, the interval is the whole line.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from curvcli.errors import UsageError, did_you_mean
from curvcli.linalg.statistics.student import quantile
from curvcli.report.data import Number

Step = str | int
"""A field or key, or a place in a list; ``"*"`` stands for all of them."""
Kind = Literal["number", "integer", "text", "boolean"]
Basis = Literal["residual", "standard error", "interval", "reach", "rounding", "exact", "unknown"]

_EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_ROUNDINGS = 32
_OF_ALL = ("error",)
_NAMES = ("name", "index")


class Figure(Struct, frozen=True):
    """One value of a result with its interval."""

    path: str
    value: Annotated[float | int | str | bool | None, Meta(description="null: not known")]
    low: Annotated[Number, Meta(description="null where unbounded, or the value is no number")]
    high: Number
    basis: Annotated[Basis, Meta(description="what the interval rests on")]

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high), infinite where null."""
        return (
            -math.inf if self.low is None else self.low,
            math.inf if self.high is None else self.high,
        )


@dataclass(frozen=True)
class Leaf:
    """What the types of a result say about a path."""

    steps: tuple[Step, ...]
    """The path, with ``value`` added where it names a value with its error."""
    kind: Kind
    choices: tuple[str, ...]
    """Texts that are possible; empty: any."""
    optional: bool


@dataclass(frozen=True)
class Precision:
    """What intervals are made with."""

    confidence: float = 0.999
    dtype: str | None = None

    def errors(self, degrees: int | None) -> float:
        """Standard errors on either side that hold the confidence, with so many degrees of freedom or many."""
        if degrees is None:
            return NormalDist().inv_cdf(0.5 + self.confidence / 2)
        return quantile(self.confidence, max(1, degrees))

    @property
    def relative(self) -> float:
        """Rounding of a number that has no error of its own."""
        return _ROUNDINGS * _EPS.get(self.dtype or "", _EPS["float32"])


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


def figures(result: Any, path: Leaf, where: str, precision: Precision) -> list[Figure]:
    """The values that a path leads to: one, or those of every entry where it has ``[*]``.

    Raises:
        LookupError: the result has no such entry.
    """
    return [
        _figure(chain, steps, where, precision)
        for chain, steps in _follow([result], path.steps, ())
    ]


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


def _follow(
    chain: list[Any], steps: tuple[Step, ...], done: tuple[Step, ...]
) -> Iterator[tuple[list[Any], tuple[Step, ...]]]:
    """(objects from the root to the value, steps taken) of every value that the steps lead to."""
    if not steps:
        yield chain, done
        return
    here, step, rest = chain[-1], steps[0], steps[1:]
    if here is None:
        yield [*chain, None], (*done, *steps)
        return
    for taken, value in _entries(here, step, written(done)):
        yield from _follow([*chain, value], rest, (*done, taken))


def _entries(here: Any, step: Step, where: str) -> list[tuple[Step, Any]]:
    if isinstance(here, Struct):
        return [(step, getattr(here, str(step)))]
    if isinstance(here, dict):
        if step == "*":
            return list(here.items())
        if step not in here:
            raise LookupError(f"{where} has no {step!r}.{did_you_mean(str(step), map(str, here))}")
        return [(step, here[step])]
    if step == "*":
        return list(enumerate(here))
    if isinstance(step, int):
        if not -len(here) <= step < len(here):
            raise LookupError(f"{where} has {len(here)} entries, no [{step}]")
        return [(step % len(here), here[step])]
    names = [str(getattr(item, "name", "")) for item in here]
    if step not in names:
        raise LookupError(f"{where} has no entry named {step!r}.{did_you_mean(step, names)}")
    return [(step, here[names.index(step)])]


def _figure(chain: list[Any], steps: tuple[Step, ...], where: str, precision: Precision) -> Figure:
    path = f"{where}.{written(steps)}"
    value = chain[-1]
    if isinstance(value, bool | str) or value is None:
        return Figure(path, value, None, None, "exact" if value is not None else "unknown")
    if isinstance(value, float) and not math.isfinite(value):
        return Figure(path, None, None, None, "unknown")
    low, high, basis = _interval(chain, steps, precision)
    return Figure(
        path,
        value,
        low if math.isfinite(low) else None,
        high if math.isfinite(high) else None,
        basis,
    )


def _interval(
    chain: list[Any], steps: tuple[Step, ...], precision: Precision
) -> tuple[float, float, Basis]:
    value, name, parent = chain[-1], steps[-1], chain[-2]
    place: int | None = None
    if isinstance(
        parent, list | tuple
    ):  # an entry of a list of numbers: its error is in a list beside it
        if not isinstance(name, int) or len(chain) < 3 or not isinstance(steps[-2], str):
            return _rounded(value, precision)
        place, name, parent = name, steps[-2], chain[-3]
    if not isinstance(parent, Struct) or isinstance(value, int):
        return _rounded(value, precision)
    low, high, basis = _by_names(parent, str(name), value, place, precision)
    beyond = _reach(chain, steps)
    if beyond is not None:
        return min(low, beyond[0]), max(high, beyond[1]), "reach"
    return low, high, basis


def _by_names(
    parent: Struct, name: str, value: float, place: int | None, precision: Precision
) -> tuple[float, float, Basis]:
    fields = parent.__struct_fields__
    z = precision.errors(getattr(parent, "degrees_of_freedom", None))
    prefixes = [f"{name}_", *([""] if name == "value" or place is not None else [])]
    for prefix in prefixes:
        if prefix + "interval" in fields:
            interval = getattr(parent, prefix + "interval")
            if interval is None:
                return -math.inf, math.inf, "interval"
            return min(value, *interval), max(value, *interval), "interval"
        for suffix, factor in (
            ("residual", 1.0),
            ("standard_error", z),
            ("error", z),
        ):
            if prefix + suffix in fields and prefix + suffix != name:
                error = getattr(parent, prefix + suffix)
                if place is not None and isinstance(error, list):
                    error = error[place] if place < len(error) else 0.0
                basis: Basis = "residual" if suffix == "residual" else "standard error"
                if isinstance(error, int | float):
                    spread = factor * abs(error)
                    _, top, _ = _rounded(value, precision)
                    spread = max(spread, abs(top - value) if error == 0 else 0.0)
                    return value - spread, value + spread, basis
                if error is None:
                    return -math.inf, math.inf, basis
    for suffix in _OF_ALL:
        error = getattr(parent, suffix, None) if suffix != name else None
        if isinstance(error, float):
            return value - z * error, value + z * error, "standard error"
    return _rounded(value, precision)


def _reach(chain: list[Any], steps: tuple[Step, ...]) -> tuple[float, float] | None:
    """How far an extreme eigenvalue may lie beyond what was seen."""
    if steps[-1] != "value" or len(steps) < 2:
        return None
    owner, field = (chain[-4], steps[-3]) if isinstance(steps[-2], int) else (chain[-3], steps[-2])
    reach = getattr(owner, "reach", None)
    if reach is None or (isinstance(steps[-2], int) and steps[-2] != 0):
        return None
    value = float(chain[-1])
    if field == "lambda_max" or (field == "top" and getattr(owner, "order", "value") == "value"):
        return value, reach.upper
    if field in ("lambda_min", "bottom"):
        return reach.lower, value
    return None


def _rounded(value: float, precision: Precision) -> tuple[float, float, Basis]:
    if isinstance(value, int):
        return value, value, "exact"
    spread = precision.relative * abs(value)
    return value - spread, value + spread, "rounding"


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
