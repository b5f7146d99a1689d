"""How the second-order model and the truth are shown side by side."""

import math

from curvcli.analyses.shared.rules import product_check
from curvcli.analyses.taylor.result import Direction, TaylorResult
from curvcli.report.data import Block, Chart, Column, Facts, Measured, Series, Table
from curvcli.report.numbers import number


def view(result: TaylorResult) -> list[Block]:
    """One row for each direction, and a chart of each line."""
    facts = Facts(
        [
            ("loss", result.loss),
            ("gradient norm", result.gradient_norm),
            ("λ max", Measured(result.lambda_max, result.lambda_max_residual)),
            ("critical learning rate 2/λ", _rate(result)),
            ("product check", product_check(result.hvp_check)),
        ]
    )
    table = Table(
        "Second-order Taylor model",
        (
            Column("direction", numeric=False),
            Column("slope"),
            Column("curvature"),
            Column("trusted to", rank=0),
            Column("best step"),
            Column("change"),
            Column("third order", rank=2),
        ),
        [
            (
                d.name,
                d.slope,
                d.curvature,
                _far(d),
                d.best_step.radius if d.best_step else None,
                d.best_step.change if d.best_step else None,
                Measured(d.third_order.value, d.third_order.standard_error)
                if d.third_order
                else None,
            )
            for d in result.directions
        ],
        f"trusted to: distance up to which the model is right to {result.trust:.0%} of its terms. "
        "best step: distance of the lowest loss on the line.",
    )
    charts: list[Block] = []
    for d in result.directions:
        # Beyond a few radii of trust the model leaves the picture.
        limit = max(3 * d.trust_radius, 1.5 * d.best_step.radius if d.best_step else 0.0)
        shown = [p for p in d.points if p.radius <= limit] or d.points
        radii = [p.radius for p in shown]
        true = Series("true", radii, [math.nan if p.true is None else p.true for p in shown])
        charts.append(
            Chart(
                f"Along {d.name}",
                "distance",
                [true, Series("second order", radii, [p.second for p in shown])],
                y_label="loss",
            )
        )
    return [facts, *([table] if result.directions else []), *charts]


def _far(direction: Direction) -> str:
    """Up to where the model is right; it may be at no distance that was looked at."""
    if direction.trust_radius <= 0 and direction.points:
        return f"< {number(direction.points[0].radius, 2)}"
    return ("≥ " if direction.trusted_to_the_end else "") + number(direction.trust_radius)


def _rate(result: TaylorResult) -> str | None:
    """2/λ, and where it lies."""
    if result.critical_learning_rate is None or result.critical_learning_rate_interval is None:
        return None
    low, high = (number(end, 3) for end in result.critical_learning_rate_interval)
    rate = number(result.critical_learning_rate, 3)
    return rate if low == high else f"{rate} (from {low} to {high})"
