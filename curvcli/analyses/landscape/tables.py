"""The points in the form of answers."""

import math

from curvcli.analyses.landscape.model import Model, Place
from curvcli.analyses.landscape.result import CurvePoint, Map
from curvcli.analyses.landscape.scan import Scan


def number(value: float | None) -> float | None:
    """None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def as_curve(scan: Scan, metric: Model, model: Model | None) -> list[CurvePoint]:
    """All points of a curve in order."""
    return [_point(scan, metric, model, place) for place in sorted(scan.known)]


def _point(scan: Scan, metric: Model, model: Model | None, place: Place) -> CurvePoint:
    here, other = scan.known[place], scan.others.get(place)
    return CurvePoint(
        t=place[0],
        distance=metric.distance(place),
        loss=number(here.loss),
        loss_standard_error=here.error(),
        change_standard_error=here.error((-1.0, scan.centre)),
        model=number(model.at(place)) if model is not None else None,
        accuracy=here.accuracy,
        other_loss=number(other.loss) if other else None,
        other_loss_standard_error=other.error() if other else None,
        other_accuracy=other.accuracy if other else None,
    )


def as_map(scan: Scan, axes: list[list[float]], model: Model | None) -> Map:
    """The grid, row by row; a table without any number is left empty."""
    xs, ys = axes
    blank = {
        name: [[None] * len(xs) for _ in ys] for name in Map.__struct_fields__ if name not in "xy"
    }
    tables: dict[str, list[list[float | None]]] = {**blank}  # type: ignore[dict-item]
    for j, y in enumerate(ys):
        for i, x in enumerate(xs):
            place = (x + 0.0, y + 0.0)
            if model is not None:
                tables["model"][j][i] = number(model.at(place))
            here, other = scan.known.get(place), scan.others.get(place)
            if here is None:
                continue
            tables["loss"][j][i] = number(here.loss)
            tables["loss_standard_error"][j][i] = here.error()
            tables["change_standard_error"][j][i] = here.error((-1.0, scan.centre))
            tables["accuracy"][j][i] = here.accuracy
            if other is not None:
                tables["other_loss"][j][i] = number(other.loss)
                tables["other_accuracy"][j][i] = other.accuracy
    full = {
        name: table if any(v is not None for row in table for v in row) else []
        for name, table in tables.items()
    }
    return Map(x=xs, y=ys, **full)
