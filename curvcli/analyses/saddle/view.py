"""How the kind of a point, and the way down from it, are shown."""

from curvcli.analyses.saddle.result import Escape, SaddleResult
from curvcli.analyses.shared.rules import product_check
from curvcli.report.data import (
    Bar,
    Block,
    Cell,
    Chart,
    Column,
    Facts,
    Measured,
    Sentence,
    Series,
    Table,
)
from curvcli.report.numbers import number


def view(result: SaddleResult) -> list[Block]:
    """The evidence, the escape direction and the walk."""
    blocks: list[Block] = [
        Facts(
            [
                ("verdict", result.verdict),
                ("stationarity ρ", _stationarity(result.stationarity)),
                ("gradient norm", result.gradient_norm),
                ("its sampling noise", result.gradient_noise),
                ("loss", result.loss),
                ("λ min", Measured(result.lambda_min.value, result.lambda_min.residual)),
                ("λ max", Measured(result.lambda_max.value, result.lambda_max.residual)),
                (
                    "every eigenvalue is in",
                    f"[{number(result.reach.lower)}, {number(result.reach.upper)}] with probability "
                    f"{result.reach.probability:g}",
                ),
                ("rounding of eigenvalues", result.floor),
                *(
                    [("a Newton step promises", f"{result.newton_promise:.2g} of the loss")]
                    if result.newton_promise is not None
                    else []
                ),
                ("product check", product_check(result.hvp_check)),
                (
                    "negative eigenvalues",
                    f"at least {result.index_at_least} of {result.parameters:,}"
                    if result.index_at_least
                    else f"none found among {result.parameters:,}",
                ),
            ],
            "Evidence",
        ),
        Sentence(
            "stationarity ρ = ‖g‖² / (2 ‖H‖ (L − L*)): the share of the loss that one step of gradient descent is sure "
            "to win here. Near 0 training stands still, 1 is a steep slope."
        ),
    ]
    if result.index is not None:
        blocks.append(
            Facts([
                ("eigenvalues below", result.index.below),
                ("estimated number", Measured(result.index.value, result.index.standard_error)),
                ("probes", result.index.probes),
            ], "Index")
        )  # fmt: skip
    if result.escape is not None:
        blocks += _escape_blocks(result.escape)
    return blocks


def _escape_blocks(escape: Escape) -> list[Block]:
    shares = Table(
        "Direction of lowest curvature",
        (Column("parameter", numeric=False), Column("share", rank=0), Column("", numeric=False)),
        [(s.name, s.share, Bar(s.share)) for s in escape.shares],
    )
    points = sorted(escape.walk, key=lambda p: p.radius)
    walk = Table(
        "Walk along it",
        (Column("radius"), Column("change of the loss", rank=0), Column("predicted")),
        [(p.radius, p.change, p.predicted) for p in points],
        "The loss falls along it." if escape.falls else "The loss does not fall along it.",
    )
    radii = [p.radius for p in points]
    changes = [float("nan") if p.change is None else p.change for p in points]
    curve = Chart(
        "The loss along the direction of lowest curvature",
        "radius",
        [
            Series("true", radii, changes),
            Series("quadratic model", radii, [p.predicted for p in points]),
        ],
        y_label="change of the loss",
    )
    return [shares, walk, *([curve] if len(points) > 1 else [])]


def _stationarity(value: float | None) -> Cell:
    """ρ; above 1 the curvature here does not explain the gradient."""
    if value is None or value <= 1:
        return value
    return f"{number(value)} (above 1: far from stationary, the surface bends more elsewhere than here)"
