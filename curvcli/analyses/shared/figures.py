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
``reach`` beside extreme eigenvalues      λ_max, and others that have not converged, up to ``reach.upper``; λ_min
                                          likewise down to ``reach.lower``
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

from msgspec import Meta, Struct

from curvcli.analyses.shared.paths import Leaf, Step, written
from curvcli.errors import did_you_mean
from curvcli.linalg.statistics.student import quantile
from curvcli.report.data import Number

Basis = Literal["residual", "standard error", "interval", "reach", "rounding", "exact", "unknown"]

_EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_ROUNDINGS = 32
_OF_ALL = ("error",)


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
class Precision:
    """What intervals are made with."""

    confidence: float = 0.999
    dtype: str | None = None

    def errors(self, degrees: int | None) -> float:
        """Standard errors on either side that hold the confidence, with so many degrees of freedom or many."""
        if not degrees:  # nothing was sampled, or a great deal
            return NormalDist().inv_cdf(0.5 + self.confidence / 2)
        return quantile(self.confidence, max(1, degrees))

    @property
    def relative(self) -> float:
        """Rounding of a number that has no error of its own."""
        return _ROUNDINGS * _EPS.get(self.dtype or "", _EPS["float32"])


def figures(result: Any, path: Leaf, where: str, precision: Precision) -> list[Figure]:
    """The values that a path leads to: one, or those of every entry where it has ``[*]``.

    Raises:
        LookupError: the result has no such entry.
    """
    return [
        _figure(chain, steps, where, precision)
        for chain, steps in _follow([result], path.steps, ())
    ]


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
    if reach is None:
        return None
    pair, value = chain[-2], float(chain[-1])
    if isinstance(steps[-2], int) and steps[-2] != 0 and getattr(pair, "converged", True):
        return None
    # The i-th Ritz value only moves outward, and no eigenvalue lies beyond the reach.
    if field == "top" and getattr(owner, "order", "value") == "magnitude":
        largest = max(abs(reach.lower), abs(reach.upper))
        return None if getattr(pair, "converged", True) else (-largest, largest)
    if field in ("lambda_max", "top"):
        return value, reach.upper
    if field in ("lambda_min", "bottom"):
        return reach.lower, value
    return None


def _rounded(value: float, precision: Precision) -> tuple[float, float, Basis]:
    if isinstance(value, int):
        return value, value, "exact"
    spread = precision.relative * abs(value)
    return value - spread, value + spread, "rounding"
