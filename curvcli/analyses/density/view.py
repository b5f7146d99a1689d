"""How a spectral density is shown."""

import math

from curvcli.analyses.density.result import DensityResult, Share
from curvcli.analyses.shared.rules import product_check
from curvcli.analyses.shared.spectrum.matrix_options import TITLES
from curvcli.report.data import Block, Chart, Column, Facts, Measured, Series, Table
from curvcli.report.numbers import number


def view(result: DensityResult) -> list[Block]:
    """Both charts, the masses, the moments and the outliers."""
    title = TITLES[result.matrix]
    at, below = result.mass_at_zero, result.mass_below_zero
    how = {
        "whole": f"all {result.parameters:,} eigenvalues by as many products",
        "gram": "all eigenvalues from the Gram matrix of the rows",
        "probes": f"{result.probes} random vectors of {result.steps} Lanczos steps",
    }[result.method]
    log = result.log_axis
    # A curve ends where less than a hundredth of an eigenvalue is in a cell.
    least = 0.01 / result.parameters
    decade = (len(log.grid) - 1) / max(1e-9, _decades(log.grid))
    cell = result.grid[1] - result.grid[0]
    blocks: list[Block] = [
        Chart(
            f"{title[0].upper()}{title[1:]}: density by magnitude",
            "|λ|",
            [
                _series("λ > 0", log.grid, log.positive, log.positive_standard_error, least * decade),
                *(
                    [_series("λ < 0", log.grid, log.negative, log.negative_standard_error, least * decade)]
                    if max(log.negative) > least * decade
                    else []
                ),
                *_outliers(result, decade),
            ],
            y_label="mass per decade",
            log_x=True,
            log_y=True,
        ),
        Chart(
            "Density of the bulk",
            "λ",
            [_series("density", result.grid, result.density, result.standard_error, least / cell)],
            y_label="mass per unit of λ",
            log_y=True,
        ),
        Facts(
            [
                (f"share at zero (|λ| ≤ {number(result.zero, 3)})", _about(at)),
                ("share below zero", _about(below)),
                *(
                    (f"mean λ{_POWERS[m.order]}", Measured(m.value, m.standard_error))
                    for m in result.moments
                ),
                ("kernel width", result.kernel_width),
                ("distance between probes (Wasserstein)", result.wasserstein),
                ("mean |λ| of the bulk", result.scale),
                ("parameters", result.parameters),
                ("method", how),
                ("product check", product_check(result.hvp_check)),
            ],
            "Value ± standard error",
        ),
    ]  # fmt: skip
    if result.outliers:
        blocks.append(
            Table(
                "Outliers",
                (Column("number"), Column("λ ± residual")),
                [(i + 1, Measured(o.value, o.residual)) for i, o in enumerate(result.outliers)],
                "Eigenvalues that stand apart from the others, one by one."
                + (" There may be more: raise --outliers." if result.more_outliers else ""),
            )
        )
    return blocks


def _outliers(result: DensityResult, decade: float) -> list[Series]:
    """The mass 1/n of each, at its own place, as high as the curve is where a cell holds one eigenvalue."""
    places = [abs(o.value) for o in result.outliers if o.value]
    one = decade / result.parameters
    return [Series("outliers", places, [one] * len(places), mark="points")] if places else []


def _about(share: Share) -> str:
    """The estimate, and the ends that the moments prove."""
    low, high = (number(v, 3) for v in share.interval)
    exact = share.interval[0] == share.interval[1]
    return number(share.value, 3) + ("" if exact else f"   (certainly {low} to {high})")


_POWERS = {1: "", 2: "²", 3: "³", 4: "⁴"}


def _decades(grid: list[float]) -> float:
    return math.log10(grid[-1] / grid[0])


def _series(name: str, x: list[float], y: list[float], error: list[float], least: float) -> Series:
    nothing = float("nan")
    shown = [v if v > least else nothing for v in y]
    low = [max(v - e, least) for v, e in zip(y, error, strict=True)]
    high = [v + e for v, e in zip(y, error, strict=True)]
    return Series(name, x, shown, low, high)
