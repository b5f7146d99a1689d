"""How the kind of a point, and the way down from it, are shown."""

from curvcli.analyses.saddle.result import Escape, SaddleResult
from curvcli.analyses.shared.rules import product_check
from curvcli.analyses.shared.verdict import Verdict
from curvcli.report.data import Bar, Block, Cell, Column, Facts, Measured, Sentence, Table
from curvcli.report.numbers import number

_MEANING: dict[Verdict, tuple[str, str]] = {
    "not-stationary": ("The gradient does not vanish: this is no critical point.", "plain"),
    "strict-saddle": ("A strict saddle: stationary, and the surface bends both ways.", "bad"),
    "local-minimum": ("A local minimum: stationary, and every direction bends upwards.", "good"),
    "local-maximum": ("A local maximum: stationary, and every direction bends downwards.", "bad"),
    "flat-minimum": ("A flat minimum: stationary, with no curvature below the reach.", "good"),
    "inconclusive": ("Inconclusive: what was measured proves no kind of point.", "plain"),
}


def view(result: SaddleResult) -> list[Block]:
    """The verdict, its evidence, the escape direction and the walk."""
    text, tone = _MEANING[result.verdict]
    if result.verdict in ("local-minimum", "local-maximum", "flat-minimum"):
        text = f"{text[:-1]} (with probability {result.probability:g})."
    if result.verdict == "not-stationary" and result.newton_promise is not None:
        text = (
            f"No minimum yet: a Newton step still promises {result.newton_promise:.0%} of the loss."
        )
    elif result.verdict == "not-stationary":
        text += (
            " How the surface bends around the weights is not known yet."
            if result.region == "unknown"
            else f" Around the weights the surface is {result.region} as far as seen."
        )
    if result.more_products:
        text += f" About {result.more_products} more products would settle it."
    blocks: list[Block] = [
        Sentence(text, tone),  # type: ignore[arg-type]
        Facts(
            [
                ("verdict", result.verdict),
                ("stationarity ρ", _stationarity(result.stationarity)),
                ("gradient norm", result.gradient_norm),
                ("its sampling noise", result.gradient_noise),
                ("loss", result.loss),
                ("λ min", Measured(result.lambda_min.value, result.lambda_min.residual)),
                ("λ max", Measured(result.lambda_max.value, result.lambda_max.residual)),
                ("reach", f"[{number(result.reach.lower)}, {number(result.reach.upper)}]"),
                ("noise floor", result.floor),
                ("a Newton step promises", _share(result.newton_promise)),
                ("product check", product_check(result.hvp_check)),
                (
                    "negative eigenvalues",
                    f"at least {result.index_at_least} of {result.parameters:,}",
                ),
            ],
            "Evidence",
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


def _share(promise: float | None) -> str | None:
    return None if promise is None else f"{promise:.2g} of the loss"


def _escape_blocks(escape: Escape) -> list[Block]:
    shares = Table(
        "Direction of lowest curvature",
        (Column("parameter", numeric=False), Column("share"), Column("", numeric=False)),
        [(s.name, s.share, Bar(s.share)) for s in escape.shares],
    )
    walk = Table(
        "Walk along it",
        (Column("radius"), Column("change of the loss"), Column("predicted")),
        [(p.radius, p.change, p.predicted) for p in sorted(escape.walk, key=lambda p: p.radius)],
        "The loss falls along it." if escape.falls else "The loss does not fall along it.",
    )
    return [shares, walk]


def _stationarity(value: float | None) -> Cell:
    """ρ; above 1 the curvature here does not explain the gradient."""
    if value is None or value <= 1:
        return value
    return f"{number(value)} (above 1: far from stationary, the surface bends more elsewhere than here)"
