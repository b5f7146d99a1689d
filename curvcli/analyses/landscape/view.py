"""How the loss along directions is shown: a curve or a map, and what stands beside it."""

import math
from collections.abc import Sequence

from curvcli.analyses.landscape.result import Axis, LandscapeResult
from curvcli.analyses.shared.rules import product_check
from curvcli.report.data import (
    Block,
    Cell,
    Chart,
    Column,
    Facts,
    HeatMap,
    Measured,
    Series,
    Spot,
    Table,
)
from curvcli.report.numbers import number

# Losses so far apart are shown on a logarithmic scale.
_WIDE = 30.0
_STATISTICS = {
    "keep": "kept as they are",
    "recompute": "recomputed from the data at every point",
    "none": "there are none",
}


def view(result: LandscapeResult) -> list[Block]:
    """The facts, the directions, the picture."""
    blocks: list[Block] = [_facts(result), _axes(result)]
    if result.barriers:
        blocks.append(_barriers(result))
    if result.path:
        blocks.append(_path(result))
    if result.evaluations > 1:
        blocks += _charts(result) if result.map is None else _maps(result)
    return blocks


def _facts(result: LandscapeResult) -> Facts:
    rows: list[tuple[str, Cell]] = [
        ("loss (± s.e. over the data)", Measured(result.loss, result.loss_standard_error))
    ]
    low = result.lowest
    if low is not None:
        rows.append(("lowest loss looked at", low.loss))
        rows.append(("at a distance of", low.distance))
        if low.distance:
            rows.append(
                ("less than at the weights by", Measured(-low.change, low.change_standard_error))
            )
    bend = result.bend
    told = (
        "yes, as far as seen"
        if bend.convex
        else f"no: {number(bend.above_chord, 3)} above a straight line between two others"
    )
    rows.append(("convex along these directions", told))
    quadratic = result.quadratic
    if quadratic is not None:
        rows.append((f"quadratic model right to {quadratic.trust:.0%}, up to", quadratic.right_to))
        rows.append(("and wrong from", quadratic.wrong_from))
    if result.variance_shares:
        shares = " + ".join(f"{s:.1%}" for s in result.variance_shares)
        rows.append(("variance of the series along these", shares))
    rows.append(("statistics of BatchNorm", _STATISTICS[result.norm_statistics]))
    rows.append(("points", result.evaluations))
    rows.append(("product check", product_check(result.hvp_check)))
    return Facts(rows)


def _axes(result: LandscapeResult) -> Table:
    return Table(
        "Directions",
        (
            Column("direction Δ", numeric=False),
            Column("length", rank=0),
            Column("slope gᵀΔ"),
            Column("curvature ΔᵀHΔ ± rounding"),
            Column("from", rank=2),
            Column("to", rank=2),
        ),
        [
            (a.name, a.norm, a.slope, Measured(a.curvature, a.curvature_residual), a.low, a.high)
            for a in result.axes
        ],
        "places are in lengths of Δ; distances in the weights' own units.",
    )


def _barriers(result: LandscapeResult) -> Table:
    return Table(
        "Between checkpoints, on the straight line",
        (
            Column("from", numeric=False),
            Column("to", numeric=False),
            Column("barrier ± s.e.", rank=0),
            Column("at"),
            Column("loss there and there", rank=2),
        ),
        [
            (
                b.a,
                b.b,
                Measured(b.height, b.height_standard_error),
                f"{b.position:.0%}",
                " and ".join(number(v, 3) for v in b.losses),
            )
            for b in result.barriers
        ],
        "barrier: highest loss above the straight line between the losses at both ends.",
    )


def _path(result: LandscapeResult) -> Table:
    columns = tuple(Column(axis.name) for axis in result.axes)
    return Table(
        "Path",
        (
            Column("checkpoint", numeric=False),
            *columns,
            Column("off the plane"),
            Column("loss in the plane", rank=0),
        ),
        [(m.name, *m.place, m.off, m.loss) for m in result.marks],
        "The loss is that of the checkpoint's shadow on the line or plane, not its own.",
    )


def _charts(result: LandscapeResult) -> list[Block]:
    points, (axis,) = result.curve, result.axes
    x = [p.t for p in points]
    label = _label(axis)
    losses = _numbers([p.loss for p in points])
    errors = _numbers([p.loss_standard_error for p in points])
    band = any(e == e for e in errors)  # noqa: PLR0124
    series = [
        Series(
            "loss",
            x,
            losses,
            [v - e for v, e in zip(losses, errors, strict=True)] if band else None,
            [v + e for v, e in zip(losses, errors, strict=True)] if band else None,
        )
    ]
    finite = [v for v in losses if math.isfinite(v)] or [0.0]
    if any(p.model is not None for p in points):
        # Beyond the heights of the curve the model leaves the picture.
        room = 0.1 * (max(finite) - min(finite))
        model = [
            v if min(finite) - room <= v <= max(finite) + room else math.nan
            for v in _numbers([p.model for p in points])
        ]
        series.append(Series("quadratic model", x, model))
    if any(p.other_loss is not None for p in points):
        series.append(Series("other data", x, _numbers([p.other_loss for p in points])))
    wide = min(finite) > 0 and max(finite) > _WIDE * min(finite)
    charts: list[Block] = [
        Chart(f"The loss along {axis.name}", label, series, y_label="loss", log_y=wide)
    ]
    right = [
        Series(name, x, _numbers(values))
        for name, values in (
            ("accuracy", [p.accuracy for p in points]),
            ("other data", [p.other_accuracy for p in points]),
        )
        if any(v is not None for v in values)
    ]
    if right:
        charts.append(Chart("Accuracy", label, right, y_label="accuracy"))
    return charts


def _maps(result: LandscapeResult) -> list[Block]:
    grids = result.map
    if grids is None:
        return []
    first, second = map(_label, result.axes)
    spots = [Spot(m.name, m.place[0], m.place[1]) for m in result.marks]
    spots = spots or [Spot("the weights", 0.0, 0.0)]

    model = [_numbers(row) for row in grids.model]

    def drawn(title: str, label: str, rows: Sequence[Sequence[float | None]]) -> HeatMap:
        values = [_numbers(row) for row in rows]
        finite = [v for row in values for v in row if math.isfinite(v)] or [0.0]
        wide = min(finite) > 0 and max(finite) > _WIDE * min(finite)
        over = model if rows is grids.loss else []
        return HeatMap(
            title, first, second, label, grids.x, grids.y, values, spots, result.path, wide, over
        )

    titles = (
        ("The loss over the plane", "loss", grids.loss),
        ("The quadratic model over the plane", "model", grids.model),
        ("Accuracy over the plane", "accuracy", grids.accuracy),
        ("The loss on the other data", "loss", grids.other_loss),
        ("Accuracy on the other data", "accuracy", grids.other_accuracy),
    )
    return [drawn(title, label, rows) for title, label, rows in titles if rows]


def _label(axis: Axis) -> str:
    """What the places on an axis are."""
    if abs(axis.norm - 1) < 1e-5:
        return f"distance along {axis.name}"
    return f"{axis.name}, in lengths of {number(axis.norm, 3)}"


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if v is None else v for v in values]
