"""How a series of checkpoints is shown."""

import math
from pathlib import Path

from curvcli.analyses.shared.figures import Figure
from curvcli.analyses.track.result import TrackedValue, TrackPoint, TrackResult
from curvcli.report.data import Block, Cell, Chart, Column, Facts, Measured, Series, State, Table

# Ratio of the largest figure to the smallest from which an axis is logarithmic.
_FAR = 100.0


def view(result: TrackResult) -> list[Block]:
    """One row for each checkpoint, and the sharpness over training."""
    rate = result.learning_rate
    limited = any(p.limit is not None for p in result.points)
    columns = [
        _name(result),
        Column("loss"),
        Column("λ max", rank=0),
        *([Column("λ/limit"), Column("edge", numeric=False)] if limited else []),
        Column("λ min", rank=2),
        Column("trace", rank=2),
        Column("ρ", rank=2),
        Column("products", rank=3),
    ]
    blocks: list[Block] = [
        Table(
            "Curvature over training",
            tuple(columns),
            [_row(point, limited) for point in result.points],
            "λ ± residual, trace ± standard error; ρ: stationarity ‖g‖² / (2 ‖H‖ (L − L*)).",
        )
    ]
    if rate:
        blocks.insert(0, Facts([("learning rate", rate), ("edge of stability 2/lr", result.edge)]))
    if any(p.dead_fraction or p.feature_rank or p.noise_scale for p in result.points):
        blocks.append(_health(result))
    known = [p for p in result.points if p.lambda_max is not None]
    paths = list(dict.fromkeys(f.path for p in known for f in p.figures))
    if paths:
        blocks.append(_figures(result, paths))
    if len(known) > 1:
        steps = [float(p.step if p.step is not None else i) for i, p in enumerate(known)]
        curves = [_banded("λ max", steps, [p.lambda_max for p in known])]
        if result.edge:
            curves.append(Series("2/lr", [steps[0], steps[-1]], [result.edge, result.edge]))
        elif any(p.limit for p in known):
            limits = [p.limit or float("nan") for p in known]
            curves.append(Series("limit of the optimizer", steps, limits))
        log = _far_apart(curves)
        blocks.append(Chart("Sharpness over training", "step", curves, y_label="λ max", log_y=log))
        lowest = [p.lambda_min for p in known]
        if any(end is not None for end in lowest):
            title = "Smallest eigenvalue over training"
            blocks.append(Chart(title, "step", [_banded("λ min", steps, lowest)], y_label="λ min"))
        traces = [p.trace for p in known]
        if any(trace is not None for trace in traces):
            sums = [
                TrackedValue(t.value, t.standard_error or 0.0, True) if t else None for t in traces
            ]
            blocks.append(
                Chart("Trace over training", "step", [_banded("trace", steps, sums)], "trace")
            )
        losses = [float("nan") if p.loss is None else p.loss for p in known]
        positive = all(loss > 0 for loss in losses)
        blocks.append(
            Chart(
                "Loss over training",
                "step",
                [Series("loss", steps, losses)],
                "loss",
                log_y=positive,
            )
        )
        blocks += [_course(path, steps, known) for path in paths if _numbers(path, known)]
    return blocks


def _figures(result: TrackResult, paths: list[str]) -> Table:
    """Those of other analyses, with half of the interval that each lies in."""
    rows = []
    for point in result.points:
        found = {f.path: f for f in point.figures}
        rows.append((_step(point), *(_cell(found.get(path)) for path in paths)))
    return Table(
        "Figures over training",
        (_name(result), *(Column(path, numeric=True) for path in paths)),
        rows,
        "± half of the interval in which the figure lies.",
    )


def _cell(figure: Figure | None) -> Cell:
    if figure is None or type(figure.value) is not float:
        return None if figure is None else figure.value
    low, high = figure.bounds
    known = math.isfinite(high - low) and figure.basis != "rounding"
    return Measured(figure.value, (high - low) / 2) if known else figure.value


def _numbers(path: str, points: list[TrackPoint]) -> bool:
    return any(type(f.value) in (int, float) for p in points for f in p.figures if f.path == path)


def _course(path: str, steps: list[float], points: list[TrackPoint]) -> Chart:
    """A figure over training with the band of its interval."""
    nothing = float("nan")
    found = [next((f for f in p.figures if f.path == path), None) for p in points]
    values = [
        nothing if f is None or not isinstance(f.value, int | float) else float(f.value)
        for f in found
    ]
    ends = [(nothing, nothing) if f is None else f.bounds for f in found]
    low, high = (
        [e if math.isfinite(e) else v for e, v in zip(side, values, strict=True)]
        for side in zip(*ends, strict=True)
    )
    return Chart(f"{path} over training", "step", [Series(path, steps, values, low, high)], path)


def about(result: TrackResult) -> str:
    """How many checkpoints there are, and the last."""
    last = Path(result.points[-1].checkpoint).name if result.points else "none"
    return f"{len(result.points)} checkpoints up to {last}"


def _far_apart(curves: list[Series]) -> bool:
    """Whether a linear axis would show a curve as a line at zero."""
    known = [v for c in curves for side in (c.y, c.low or ()) for v in side if math.isfinite(v)]
    return bool(known) and min(known) > 0 and max(known) > _FAR * min(known)


def _banded(name: str, steps: list[float], ends: list[TrackedValue | None]) -> Series:
    """A figure over training with the band of its error."""
    nothing = float("nan")
    values = [nothing if end is None else end.value for end in ends]
    errors = [nothing if end is None else end.residual for end in ends]
    low = [v - e for v, e in zip(values, errors, strict=True)]
    high = [v + e for v, e in zip(values, errors, strict=True)]
    return Series(name, steps, values, low, high)


def _row(point: TrackPoint, with_edge: bool) -> tuple[Cell, ...]:
    trace = point.trace
    if point.error is not None:
        width = 6 + 2 * with_edge
        return (_step(point), State("cannot be read", "bad"), *[None] * (width - 1), None)[
            : width + 1
        ]
    return (
        _step(point),
        point.loss,
        _measured(point.lambda_max),
        *((point.sharpness_ratio, point.edge) if with_edge else ()),
        _measured(point.lambda_min),
        Measured(trace.value, trace.standard_error) if trace else None,
        point.stationarity,
        point.matvecs + point.trace_matvecs + point.limit_matvecs,
    )


def _health(result: TrackResult) -> Table:
    """What is known of each checkpoint besides curvature."""
    rows = [
        (
            _step(p),
            None if p.accuracy is None else f"{p.accuracy:.1%}",
            None if p.dead_fraction is None else f"{p.dead_fraction:.1%}",
            p.feature_rank,
            Measured(p.noise_scale, p.noise_scale_error) if p.noise_scale else None,
            p.learning_rate,
        )
        for p in result.points
        if p.error is None
    ]
    names = ("accuracy", "dead units", "feature rank", "noise scale", "learning rate")
    return Table(
        "Health over training",
        (_name(result), *map(Column, names)),
        rows,
        "feature rank: effective rank of what enters the last linear layer; noise scale: tr Σ/|G|² in samples, "
        "— where the gradient is within its noise.",
    )


def _name(result: TrackResult) -> Column:
    """Heading of what tells the checkpoints apart."""
    stepped = all(point.step is not None for point in result.points)
    return Column("step") if stepped else Column("checkpoint", numeric=False)


def _step(point: TrackPoint) -> str:
    return point.checkpoint if point.step is None else str(point.step)


def _measured(value: TrackedValue | None) -> Measured | None:
    return Measured(value.value, value.residual) if value else None
