"""`curvcli density`: the whole spectrum as a density, with a band, and its outliers by name."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from curvcli.analyses.analysis import Analysis
from curvcli.analyses.context import Context, Stage, parse_seconds
from curvcli.analyses.eigenpairs import certified_pairs
from curvcli.analyses.matrices import (
    TITLES,
    Chosen,
    DrawsOption,
    ExactOption,
    Matrix,
    MatrixOption,
    OptimizerOption,
)
from curvcli.report.data import (
    Block,
    Chart,
    Column,
    Facts,
    Measured,
    Number,
    Sentence,
    Series,
    Table,
)
from curvcli.report.numbers import number

if TYPE_CHECKING:
    from curvcli.linalg.density import Curve, Density, Mass
    from curvcli.operators.curvature import Curvature

Status = Literal["converged", "max_matvecs", "timeout", "interrupted"]

# Eigenvalues up to this share of the norm count as zero, where nothing else is asked for.
_ZERO = 1e-4
_POINTS = 240
_LOG_POINTS = 120
# Convergence of the outliers, relative.
_TOL = 1e-2


class Outlier(Struct, frozen=True):
    """An eigenvalue that stands apart from the rest of the spectrum."""

    value: float
    residual: Annotated[float, Meta(description="some eigenvalue lies within value ± residual")]


class Share(Struct, frozen=True):
    """A share of all eigenvalues."""

    value: float
    standard_error: Annotated[Number, Meta(description="over the probes")]
    degrees_of_freedom: int
    interval: Annotated[
        tuple[float, float],
        Meta(
            description="what every measure with the moments of the probes has (Chebyshev, Markov and Stieltjes), "
            "widened by 95 % of the sampling error: a Gauss rule tells no more"
        ),
    ]


class Moment(Struct, frozen=True):
    """Σ λ^order / n."""

    order: int
    value: float
    standard_error: Number
    degrees_of_freedom: int


class LogAxis(Struct, frozen=True):
    """The bulk over |λ|, as mass per decade, apart for both signs."""

    grid: list[float]
    positive: list[float]
    positive_standard_error: list[float]
    negative: list[float]
    negative_standard_error: list[float]


class DensityResult(Struct, frozen=True):
    """The spectral density of a curvature matrix."""

    matrix: Matrix
    grid: Annotated[list[float], Meta(description="λ, over the bulk: outliers are listed apart")]
    density: Annotated[list[float], Meta(description="of the bulk: mass per unit of λ")]
    standard_error: list[float]
    kernel_width: Annotated[
        float,
        Meta(description="median; the mass of each node is spread between its neighbours"),
    ]
    log_axis: LogAxis
    moments: list[Moment]
    mass_at_zero: Annotated[Share, Meta(description="|λ| ≤ zero")]
    mass_below_zero: Annotated[Share, Meta(description="λ < −zero")]
    zero: Annotated[float, Meta(description="eigenvalues up to this magnitude count as zero")]
    outliers: Annotated[list[Outlier], Meta(description="largest first; certified")]
    more_outliers: Annotated[
        bool, Meta(description="whether the list may go on: all that were asked for stand apart")
    ]
    wasserstein: Annotated[
        Number,
        Meta(
            description="error of the bulk: mean distance of a probe from all, over √(probes − 1)"
        ),
    ]
    scale: Annotated[float, Meta(description="mean |λ| of the bulk, which the tolerance is of")]
    parameters: Annotated[int, Meta(description="n, the dimension of the matrix")]
    probes: int
    steps: Annotated[int, Meta(description="Lanczos steps of a probe")]
    status: Annotated[Status, Meta(description="why the run ended")]
    method: Annotated[
        Literal["probes", "gram", "whole"],
        Meta(
            description="whole: all eigenvalues by n products; gram: all from the rows' Gram matrix"
        ),
    ]


def density(
    context: Context,
    *,
    matrix: MatrixOption = "hessian",
    tol: Annotated[
        float,
        Meta(
            gt=0, description="Stop when the Wasserstein error is below tol · mean |λ| of the bulk."
        ),
    ] = 0.05,
    steps: Annotated[int, Meta(ge=4, description="Lanczos steps of each probe.")] = 80,
    probes: Annotated[int, Meta(ge=2, description="Random vectors at least.")] = 5,
    max_probes: Annotated[int, Meta(ge=2, description="Random vectors at most.")] = 30,
    outliers: Annotated[
        int, Meta(ge=0, description="Leading eigenvalues to certify, of either end together.")
    ] = 13,
    zero: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Eigenvalues up to this magnitude count as zero; default: 1e-4 ‖A‖."),
    ] = None,
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None,
    optimizer: OptimizerOption = None,
    draws: DrawsOption = 1,
    exact_rows: ExactOption = 256,
) -> DensityResult:
    """The density of all Hessian eigenvalues, with a band, mass at and below zero, and outliers by name.

    Stochastic Lanczos quadrature with as many random vectors as it takes for them to agree. The leading eigenvalues are
    certified and taken out first; the width of the smoothing follows the data. A chart with -o density.png or .svg.

    Args:
        context: the target.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    context.limit_time(parse_seconds(timeout))
    context.progress(Stage("loading", 0, None))
    operator, _ = Chosen(matrix, draws, optimizer).operator(
        context, wanted=outliers, preferred_capacity=max(200, 2 * steps)
    )
    known = _all_known(context, operator, exact_rows, steps)
    if known is None:
        found, named, status, error = _sampled(
            context, operator, outliers, steps, (probes, max(probes, max_probes)), tol
        )
        method: Literal["probes", "gram", "whole"] = "probes"
    else:
        found, named, error, method = known
        status = "converged"
    result = _result(operator, found, named, error, zero, matrix, steps, status, method, outliers)
    spread = found.spread()
    if status != "converged":
        context.incomplete = True
        context.find(
            "density.not-converged", "warning", "wasserstein",
            "the probes do not agree to the tolerance: "
            + ("raise --max-probes" if status == "max_matvecs" else "the run ended early"),
            value=spread, threshold=tol * found.scale(),
        )  # fmt: skip
    return result


_Named = list[Outlier]


def _all_known(
    context: Context, operator: "Curvature[Any]", rows: int, steps: int
) -> "tuple[Density, _Named, float, Literal['gram', 'whole']] | None":
    """The density where all eigenvalues can be had."""
    import numpy as np
    import torch

    from curvcli.linalg.density import Density
    from curvcli.linalg.lanczos import ROUNDING
    from curvcli.linalg.operator import eigh
    from curvcli.linalg.spectral_sums import krylov
    from curvcli.operators.gauss_newton import GaussNewton
    from curvcli.operators.gram import gram_spectrum

    n = operator.objective.dimension
    zeros = np.zeros(operator.objective.untouched)
    if rows and isinstance(operator, GaussNewton):
        gram = gram_spectrum(operator, rows)
        if gram is not None:
            context.notes.append(
                f"the whole spectrum was computed from the Gram matrix of {len(gram.values_R)} rows"
            )
            values = np.concatenate([gram.all_values(), zeros])
            return Density(n, values, []), [], gram.error, "gram"
    if operator.n > min(2 * steps, operator.plan.capacity):
        return None
    generator = torch.Generator().manual_seed(context.spec.seed)
    whole = krylov(operator, operator.n, generator, stop=context.stop)
    if whole.kept < operator.n:
        return None
    values = np.concatenate([eigh(whole.t_LL)[0], zeros])
    error = ROUNDING * torch.finfo(operator.dtype).eps * float(np.abs(values).max())
    return Density(n, values, []), [], error, "whole"


def _sampled(
    context: Context,
    operator: "Curvature[Any]",
    outliers: int,
    steps: int,
    probes: tuple[int, int],
    tol: float,
) -> "tuple[Density, _Named, Status, float]":
    """Outliers by Lanczos, the rest by probes on their complement."""
    import numpy as np
    import torch

    from curvcli.linalg.density import Density
    from curvcli.linalg.lanczos import Wanted, lanczos, start
    from curvcli.linalg.operator import Deflated
    from curvcli.linalg.quadrature import gauss_rules, random_complement

    vectors_KN = torch.zeros(0, operator.n, dtype=operator.dtype, device=operator.device)
    values, named, error = np.zeros(0), [], 0.0
    if outliers:
        wanted = Wanted(outliers - outliers // 4, outliers // 4)
        run = start(operator, operator.plan.capacity, context.spec.seed)
        leading = lanczos(
            operator, wanted, tol=_TOL, recheck=0, state=run, stop=context.stop,
            progress=lambda p: context.progress(Stage("outliers", p.converged, p.wanted)),
        )  # fmt: skip
        run.basis.drop()
        certified = certified_pairs(context, operator, leading, _TOL)
        # A matrix with few eigenvalues gives one pair at both ends.
        order = np.argsort([-p.value for p in certified.pairs])
        chosen = [int(i) for i in order if leading.converged_K[i]]
        vectors_KN, _ = torch.linalg.qr(leading.vectors_KN[chosen].T)
        vectors_KN = vectors_KN.T.contiguous()
        named = [Outlier(certified.pairs[i].value, certified.pairs[i].residual) for i in chosen]
        values, error = np.array([o.value for o in named]), certified.rounding
    zeros = np.zeros(operator.objective.untouched)
    generator = torch.Generator().manual_seed(context.spec.seed + 1)
    found = Density(operator.objective.dimension, np.concatenate([values, zeros]), [])
    rest = Deflated(operator, vectors_KN)
    while True:
        q_N = random_complement(operator, vectors_KN, generator)
        found.rules.append(gauss_rules(rest, q_N, min(steps, operator.plan.capacity)).nodes)
        done = len(found.rules)
        context.progress(Stage("probes", done, None, f"{found.spread():.2g} apart"))
        if done >= probes[0] and found.spread() <= tol * found.scale():
            return found, named, "converged", error
        if (reason := context.stop()) is not None:
            return found, named, reason, error
        if done >= probes[1]:
            return found, named, "max_matvecs", error


def _result(
    operator: "Curvature[Any]",
    found: "Density",
    named: _Named,
    error: float,
    zero: float | None,
    matrix: Matrix,
    steps: int,
    status: Status,
    method: Literal["probes", "gram", "whole"],
    asked: int,
) -> DensityResult:
    import numpy as np

    from curvcli.linalg.density import Density
    from curvcli.linalg.quadrature import Nodes

    nodes = np.concatenate([r.theta_M for r in found.rules] or [np.zeros(0)])
    norm = float(np.abs(np.concatenate([nodes, found.known_K, [0.0]])).max())
    zero = max(_ZERO * norm, error) if zero is None else zero
    bulk, apart = found, named
    if found.rules:
        width = found.kernel_width()
        edges = float(nodes.min()) - width, float(nodes.max()) + width
        apart = [o for o in named if not edges[0] <= o.value <= edges[1]]
        inner = np.array([o.value for o in named if o not in apart])
        if len(inner):
            edges = min(edges[0], float(inner.min())), max(edges[1], float(inner.max()))
    else:
        # All are known: they are smoothed like the nodes of one rule, and nothing has a sampling error.
        order = np.sort(found.known_K)
        bulk = Density(found.n, np.zeros(0), [Nodes(order, np.full(found.n, 1 / found.n))])
        edges = float(order[0]), float(order[-1])
    pad = 0.03 * (edges[1] - edges[0]) or max(zero, 1e-12)
    linear = bulk.curve(edges[0] - pad, edges[1] + pad, _POINTS)
    floor = max(zero, 1e-12 * norm, np.finfo(float).tiny)
    top = max(norm, 10 * floor)
    plus, minus = (bulk.log_curve(floor, top, _LOG_POINTS, sign) for sign in (1, -1))
    degrees = found.degrees
    return DensityResult(
        matrix=matrix,
        grid=linear.grid_G.tolist(),
        density=linear.density_G.tolist(),
        standard_error=linear.standard_error_G.tolist(),
        kernel_width=bulk.kernel_width(),
        log_axis=LogAxis(plus.grid_G.tolist(), *_lists(plus), *_lists(minus)),
        moments=[Moment(k, *found.moment(k), degrees) for k in (1, 2, 3, 4)],
        mass_at_zero=_share(found.within(zero), degrees),
        mass_below_zero=_share(found.below(-zero), degrees),
        zero=zero,
        outliers=apart,
        more_outliers=method == "probes" and 0 < asked == len(apart),
        wasserstein=found.spread(),
        scale=found.scale() if found.rules else bulk.scale(),
        parameters=found.n,
        probes=len(found.rules),
        steps=steps if found.rules else 0,
        status=status,
        method=method,
    )


def _lists(curve: "Curve") -> tuple[list[float], list[float]]:
    return curve.density_G.tolist(), curve.standard_error_G.tolist()


def _share(mass: "Mass", degrees: int) -> Share:
    from curvcli.linalg.student import quantile

    margin = quantile(0.95, degrees) * mass.standard_error if degrees else 0.0
    interval = max(0.0, mass.low - margin), min(1.0, mass.high + margin)
    return Share(mass.value, mass.standard_error, degrees, interval)


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
    decade = (_LOG_POINTS - 1) / max(1e-9, _decades(log.grid))
    cell = result.grid[1] - result.grid[0]
    blocks: list[Block] = [
        Chart(
            f"{title[0].upper()}{title[1:]}: density by magnitude, mass per decade",
            "|λ|",
            [
                _series("λ > 0", log.grid, log.positive, log.positive_standard_error, least * decade),
                *(
                    [_series("λ < 0", log.grid, log.negative, log.negative_standard_error, least * decade)]
                    if max(log.negative) > least * decade
                    else []
                ),
            ],
            log_x=True,
            log_y=True,
        ),
        Chart(
            "Density of the bulk, mass per unit",
            "λ",
            [_series("density", result.grid, result.density, result.standard_error, least / cell)],
            log_y=True,
        ),
        Facts(
            [
                (f"mass at zero (|λ| ≤ {number(result.zero, 3)})", _about(at)),
                ("mass below zero", _about(below)),
                *(
                    (f"mean λ{_POWERS[m.order]}", Measured(m.value, m.standard_error))
                    for m in result.moments
                ),
                ("kernel width", result.kernel_width),
                ("Wasserstein error", result.wasserstein),
                ("mean |λ| of the bulk", result.scale),
                ("parameters", result.parameters),
                ("method", how),
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
                "They stand apart from the bulk, each of mass 1/n."
                + (" There may be more: raise --outliers." if result.more_outliers else ""),
            )
        )
    blocks.append(
        Sentence(
            f"About {at.value:.0%} of the eigenvalues are zero to within {number(result.zero, 3)} and "
            f"{below.value:.0%} are negative"
            + (f"; {len(result.outliers)} stand apart." if result.outliers else ".")
        )
    )
    return blocks


def _about(share: Share) -> str:
    """The estimate, and what it may be by the moments."""
    low, high = (number(v, 3) for v in share.interval)
    exact = share.interval[0] == share.interval[1]
    return number(share.value, 3) + ("" if exact else f"   (the moments allow {low} to {high})")


_POWERS = {1: "", 2: "²", 3: "³", 4: "⁴"}


def _decades(grid: list[float]) -> float:
    import math

    return math.log10(grid[-1] / grid[0])


def _series(name: str, x: list[float], y: list[float], error: list[float], least: float) -> Series:
    nothing = float("nan")
    shown = [v if v > least else nothing for v in y]
    low = [max(v - e, least) for v, e in zip(y, error, strict=True)]
    high = [v + e for v, e in zip(y, error, strict=True)]
    return Series(name, x, shown, low, high)


ANALYSIS = Analysis(density, view)
