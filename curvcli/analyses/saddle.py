"""`curvcli saddle`: what kind of critical point the weights sit at, with the evidence."""

import math
from typing import TYPE_CHECKING, Annotated, NamedTuple

from msgspec import Meta, Struct

from curvcli.analyses.analysis import Analysis
from curvcli.analyses.context import Context, Stage, parse_seconds
from curvcli.analyses.eigenpairs import Reach
from curvcli.analyses.verdict import (
    Evidence,
    Region,
    Verdict,
    classify,
    products_to_settle,
    region,
    stationarity_of,
)
from curvcli.report.data import Bar, Block, Column, Facts, Measured, Number, Sentence, Table
from curvcli.report.numbers import number

if TYPE_CHECKING:
    from collections.abc import Callable

    from curvcli.linalg.lanczos import LanczosResult, LanczosState
    from curvcli.linalg.quadrature import Nodes
    from curvcli.operators.hessian import Hessian
    from curvcli.operators.line import GradientNoise

# Products between two looks at the verdict.
_CHUNK = 8
# Radii of the walk, as shares of √(2L/|λ|): the model predicts a fall of their squares times L.
_WALK = (0.01, 0.03, 0.1, 0.3, 1.0)
# Parameters named in the escape direction.
_SHARES = 12


class Extreme(Struct, frozen=True):
    """An end of the spectrum as far as seen."""

    value: Annotated[float, Meta(description="Rayleigh quotient of the extreme Ritz vector")]
    residual: Annotated[float, Meta(description="some eigenvalue lies within value ± residual")]


class Share(Struct, frozen=True):
    """How much of a direction lies in one parameter."""

    name: str
    share: Annotated[float, Meta(description="of the squared norm")]


class WalkPoint(Struct, frozen=True):
    """The loss at a distance along ± the escape direction."""

    radius: Annotated[float, Meta(description="distance from the weights, signed")]
    change: Annotated[Number, Meta(description="L(θ + radius · v) − L(θ)")]
    predicted: Annotated[float, Meta(description="by the second-order Taylor model")]


class Escape(Struct, frozen=True):
    """The direction of lowest curvature and the loss along it."""

    curvature: float
    shares: Annotated[list[Share], Meta(description="parameters with most of it, largest first")]
    walk: list[WalkPoint]
    falls: Annotated[
        bool, Meta(description="whether the loss falls along it by more than rounding")
    ]


class IndexEstimate(Struct, frozen=True):
    """Number of eigenvalues below a floor, by stochastic Lanczos quadrature."""

    below: Annotated[float, Meta(description="eigenvalues smaller than this are counted")]
    value: float
    standard_error: Number
    probes: int


class SaddleResult(Struct, frozen=True):
    """Where the weights are on the loss surface."""

    verdict: Verdict
    probability: Annotated[
        float, Meta(description="with which verdicts that rest on the reach hold")
    ]
    stationarity: Annotated[
        Number, Meta(description="ρ = ‖g‖² / (2 ‖H‖ (L − L*)), in [0, 1] for a smooth loss")
    ]
    gradient_norm: float
    gradient_noise: Annotated[
        Number, Meta(description="sampling error of the gradient, √(tr Σ / W)")
    ]
    lambda_min: Extreme
    lambda_max: Extreme
    reach: Reach
    index_at_least: Annotated[int, Meta(description="negative eigenvalues that are proven")]
    escape: Escape | None
    region: Annotated[Region, Meta(description="how the surface bends around the weights")]
    loss: float
    floor: Annotated[float, Meta(description="curvature below this is rounding of the products")]
    parameters: int
    more_products: Annotated[
        int | None, Meta(description="a guess of how many more products would settle the verdict")
    ]
    index: IndexEstimate | None


def saddle(
    context: Context,
    *,
    grad_tol: Annotated[float, Meta(gt=0, description="Stationary when ρ is at most this.")] = 1e-3,
    flatness: Annotated[
        float, Meta(ge=0, description="Share of ‖H‖ that a flat minimum may bend downwards.")
    ] = 1e-3,
    loss_floor: Annotated[float, "L*, the lowest value the loss can take."] = 0.0,
    tol: Annotated[float, Meta(gt=0, description="Of the extreme eigenvalues, relative.")] = 1e-2,
    max_matvecs: Annotated[int, Meta(ge=2, description="Products to spend at most.")] = 300,
    timeout: Annotated[str | None, "End after so long, e.g. 90s or 5m, with what is known."] = None,
    probability: Annotated[
        float, Meta(gt=0, lt=1, description="With which the reach holds.")
    ] = 0.999,
    index: Annotated[bool, "Also estimate the number of negative eigenvalues."] = False,
    index_probes: Annotated[int, Meta(ge=2, description="Random vectors of that estimate.")] = 8,
) -> SaddleResult:
    """What kind of critical point the weights sit at, with the evidence.

    Verdicts: not-stationary, strict-saddle, local-minimum, local-maximum, flat-minimum, inconclusive. A saddle is
    proven by a direction of negative curvature, and confirmed by walking along it; a minimum holds with the
    probability of the reach. Products are made until the verdict is settled or the budget ends.

    Args:
        context: the target.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    import torch

    from curvcli.errors import LossError
    from curvcli.linalg.vectors import euclidean_norm
    from curvcli.operators.hessian import Hessian
    from curvcli.operators.line import gradient_noise

    context.limit_time(parse_seconds(timeout))
    context.progress(Stage("loading", 0, None))
    objective = context.objective
    if objective.loss < loss_floor:
        raise LossError(
            f"the loss is {objective.loss:.6g}, below its floor of {loss_floor:g}",
            "pass the lowest value it can take as --loss-floor",
        )
    operator = Hessian(
        objective, memory=context.spec.memory_bytes, wanted=4, preferred_capacity=max_matvecs + 2
    )
    noise = gradient_noise(operator)
    resolution = 4 * torch.finfo(operator.dtype).eps * float(euclidean_norm(objective.flat()))

    # Entries that no sample touches have exactly zero curvature.
    zero = [0.0] if objective.untouched else []

    def weigh(found: "LanczosResult", floor: float) -> Evidence:
        return Evidence(
            stationarity=stationarity_of(noise.norm, found.norm, objective.loss - loss_floor),
            grad_tol=grad_tol,
            gradient_resolved=noise.norm > resolution * found.norm,
            theta_min=min(float(found.ritz_values_M[0]), *zero, math.inf),
            theta_max=max(float(found.ritz_values_M[-1]), *zero, -math.inf),
            lower=min(found.lower - floor, *zero, math.inf),
            upper=max(found.upper + floor, *zero, -math.inf),
            floor=floor,
            flatness=flatness,
        )

    found, state = _search(context, operator, weigh, tol, max_matvecs, 1 - probability)
    extremes = _certified(context, operator, found)
    evidence = weigh(found, extremes.floor)
    escape = _walk(context, operator, evidence, found, noise)
    verdict = _verdict(context, evidence, escape)
    more = None
    if verdict == "inconclusive":
        more = products_to_settle(evidence, found.matvecs)
        if not state.first_cycle:
            context.notes.append(
                "the basis is full, so that the reach cannot improve: raise --memory"
            )
    context.incomplete = context.stop() is not None
    estimate = _index(context, operator, evidence, index_probes) if index else None
    result = SaddleResult(
        verdict=verdict,
        probability=probability,
        stationarity=evidence.stationarity if math.isfinite(evidence.stationarity) else None,
        gradient_norm=noise.norm,
        gradient_noise=noise.noise,
        lambda_min=extremes.low,
        lambda_max=extremes.high,
        reach=Reach(evidence.lower, evidence.upper, probability),
        index_at_least=int((found.ritz_values_M < -evidence.floor).sum()),
        escape=escape,
        region=region(evidence),
        loss=objective.loss,
        floor=evidence.floor,
        parameters=operator.objective.dimension,
        more_products=more,
        index=estimate,
    )
    _findings(context, result)
    return result


def _search(
    context: Context,
    operator: "Hessian",
    weigh: "Callable[[LanczosResult, float], Evidence]",
    tol: float,
    max_matvecs: int,
    probability: float,
) -> tuple["LanczosResult", "LanczosState"]:
    """Products until both extremes have converged and the verdict is settled."""
    import torch

    from curvcli.linalg.lanczos import ROUNDING, Wanted, lanczos, start

    wanted = Wanted(1, 1) if operator.n > 1 else Wanted(1, 0)
    state = start(operator, operator.plan.capacity, context.spec.seed)
    eps = torch.finfo(operator.dtype).eps
    while True:
        left = max_matvecs - state.matvecs
        # Once the extremes have converged only the reach is of interest: a tolerance of 0 goes on.
        found = lanczos(
            operator, wanted, tol=tol, max_matvecs=min(_CHUNK, left), probability=probability,
            recheck=0, state=state, stop=context.stop,
        )  # fmt: skip
        if found.status == "converged":
            evidence = weigh(found, ROUNDING * eps * found.norm)
            if classify(evidence) != "inconclusive" or state.processed == operator.n:
                return found, state
            if evidence.vanishes or not state.first_cycle or left <= 0:
                return found, state
            found = lanczos(
                operator, wanted, tol=0.0, max_matvecs=min(_CHUNK, left), probability=probability,
                recheck=0, state=state, stop=context.stop,
            )  # fmt: skip
        verdict = classify(weigh(found, ROUNDING * eps * found.norm))
        detail = f"so far: {verdict}"
        context.progress(Stage("products", state.matvecs, max_matvecs, detail))
        if state.matvecs >= max_matvecs or found.status in ("timeout", "interrupted"):
            return found, state


class Extremes(NamedTuple):
    """Both ends with true residuals, and the floor below which curvature is rounding."""

    low: Extreme
    high: Extreme
    floor: float


def _certified(context: Context, operator: "Hessian", found: "LanczosResult") -> Extremes:
    import torch

    from curvcli.analyses.eigenpairs import certified_pairs
    from curvcli.linalg.lanczos import ROUNDING

    floor = ROUNDING * torch.finfo(operator.dtype).eps * found.norm
    if context.stop() is None:
        certified = certified_pairs(context, operator, found, tol=1.0)
        ends = [Extreme(pair.value, pair.residual) for pair in certified.pairs]
        floor = max(floor, certified.rounding)
    else:
        ends = [
            Extreme(float(v), float(b) + floor)
            for v, b in zip(found.values_K, found.bounds_K, strict=True)
        ]
    if operator.finite_differences:
        # Their truncation error is of the order eps^(2/3) and does not show as an asymmetry.
        floor += 10 * torch.finfo(operator.dtype).eps ** (2 / 3) * found.norm
    return Extremes(ends[-1], ends[0], floor)


def _walk(
    context: Context,
    operator: "Hessian",
    evidence: Evidence,
    found: "LanczosResult",
    noise: "GradientNoise",
) -> Escape | None:
    """The loss along ± the lowest Ritz vector, at radii from where the model holds to where it bends."""
    import torch

    from curvcli.operators.line import Line, layer_shares

    objective = operator.objective
    bends_down = evidence.theta_min < -evidence.floor
    if not evidence.stationary and not bends_down:
        return None
    v_N = found.vectors_KN[-1]
    line = Line(objective, v_N, operator)
    slope = float(torch.dot(operator.gradient, v_N))
    scale = abs(evidence.theta_min) if bends_down else evidence.norm
    height = abs(objective.loss) or 1.0
    unit = math.sqrt(2 * height / scale) if scale > 0 else 1.0
    points: list[WalkPoint] = []
    falls = False
    for share in _WALK:
        for sign in (1.0, -1.0):
            context.progress(Stage("walk", len(points), 2 * len(_WALK)))
            radius = sign * share * unit
            change = line(radius) - objective.loss
            predicted = slope * radius + 0.5 * evidence.theta_min * radius**2
            points.append(WalkPoint(radius, change if math.isfinite(change) else None, predicted))
            # A slope that is left over, and curvature within the floor, are no proof of a way down.
            spare = line.resolution() + abs(slope * radius) + 0.5 * evidence.floor * radius**2
            falls = falls or change < -spare
    shares = [Share(name, share) for name, share in layer_shares(objective, v_N, _SHARES)]
    return Escape(evidence.theta_min, shares, points, falls)


def _verdict(context: Context, evidence: Evidence, escape: Escape | None) -> Verdict:
    """The verdict of the evidence, held against the walk."""
    verdict = classify(evidence)
    if escape is None:
        return verdict
    if verdict == "strict-saddle" and not escape.falls:
        context.find(
            "saddle.unconfirmed", "warning", "escape",
            "negative curvature was found, but the loss does not fall along it by more than rounding: "
            "use --dtype float64",
            value=evidence.theta_min, threshold=-evidence.floor,
        )  # fmt: skip
    if verdict in ("flat-minimum", "inconclusive") and evidence.stationary and escape.falls:
        context.find(
            "saddle.degenerate", "warning", "escape",
            "the loss falls along the flattest direction although the curvature there is within "
            "rounding of zero: a degenerate point, whose kind the second derivative cannot tell",
            value=evidence.theta_min, threshold=-evidence.floor,
        )  # fmt: skip
        return "inconclusive"
    return verdict


def _index(context: Context, operator: "Hessian", evidence: Evidence, probes: int) -> IndexEstimate:
    import torch

    from curvcli.linalg.quadrature import gauss_rule, integrate

    below = -max(evidence.floor, evidence.flatness * evidence.norm)
    generator = torch.Generator().manual_seed(context.spec.seed + 1)
    rules: list[Nodes] = []
    for probe in range(probes):
        context.progress(Stage("index", probe, probes))
        rules.append(gauss_rule(operator, min(operator.n, 60), generator))
        if context.stop() is not None:
            break
    estimate = integrate(rules, lambda theta_M: (theta_M < below).astype(float), operator.n)
    return IndexEstimate(below, estimate.value, estimate.standard_error, len(rules))


def _findings(context: Context, result: SaddleResult) -> None:
    if result.verdict == "strict-saddle":
        context.find(
            "saddle.strict", "warning", "verdict",
            f"the weights sit at a saddle with at least {result.index_at_least} directions of negative "
            "curvature: training has not reached a minimum",
            value=result.lambda_min.value, threshold=-result.floor,
        )  # fmt: skip
    elif result.verdict == "local-maximum":
        context.find("saddle.maximum", "warning", "verdict", "the weights sit at a maximum of the loss",
                     value=result.lambda_max.value, threshold=-result.floor)  # fmt: skip
    elif result.verdict == "inconclusive" and result.more_products is not None:
        context.find(
            "saddle.inconclusive", "note", "verdict",
            f"about {result.more_products} more products would settle it (--max-matvecs)",
            value=float(result.more_products), threshold=0.0,
        )  # fmt: skip


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
    if result.verdict == "not-stationary":
        text += f" Around the weights the surface is {result.region} as far as seen."
    if result.more_products:
        text += f" About {result.more_products} more products would settle it."
    blocks: list[Block] = [
        Sentence(text, tone),  # type: ignore[arg-type]
        Facts(
            [
                ("verdict", result.verdict),
                ("stationarity ρ", result.stationarity),
                ("gradient norm", result.gradient_norm),
                ("its sampling noise", result.gradient_noise),
                ("loss", result.loss),
                ("λ min", Measured(result.lambda_min.value, result.lambda_min.residual)),
                ("λ max", Measured(result.lambda_max.value, result.lambda_max.residual)),
                ("reach", f"[{number(result.reach.lower)}, {number(result.reach.upper)}]"),
                ("noise floor", result.floor),
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


ANALYSIS = Analysis(saddle, view)
