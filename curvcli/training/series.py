"""An answer as numbers that go into a time series, named as rules of `check` name them."""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct


def series_of(analysis: str, result: Any) -> dict[str, float]:
    """The measured numbers of a result; of lists the first entry, and no list whose entries have names.

    Units that are dead are counted over all layers: ``gradients.dead_fraction``.
    """
    found = {f"{analysis}.{path}": value for path, value in _numbers(result)}
    if analysis == "gradients":
        layers = [s for s in result.layers if s.dead_fraction is not None and s.units]
        if layers:
            dead = sum(s.dead_fraction * s.units for s in layers)
            found["gradients.dead_fraction"] = dead / sum(s.units for s in layers)
    return found


def _numbers(result: Any) -> Iterator[tuple[str, float]]:
    for name in result.__struct_fields__:
        value = getattr(result, name)
        if type(value) is float:
            yield name, value
        elif isinstance(value, Struct):
            for path, number in _numbers(value):
                yield f"{name}.{path}", number
        elif isinstance(value, list) and value and _nameless(value[0]):
            for path, number in _numbers(value[0]):
                yield f"{name}[0].{path}", number


def _nameless(entry: Any) -> bool:
    return isinstance(entry, Struct) and "name" not in entry.__struct_fields__
