"""`curvcli saddle`: what kind of critical point the weights sit at, with the evidence."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from curvcli.analyses.saddle.command import SaddleOptions
from curvcli.analyses.saddle.findings import (
    AT_CHANCE,
    DEGENERATE,
    INCONCLUSIVE,
    MAXIMUM,
    STRICT,
    UNCONFIRMED,
    UNRESOLVED,
)
from curvcli.analyses.saddle.result import (
    Escape,
    Extreme,
    IndexEstimate,
    SaddleResult,
)
from curvcli.analyses.saddle.stationarity import Scales, convex_where_linear
from curvcli.analyses.saddle.walk import walk
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.certified import certified_pairs
from curvcli.analyses.shared.spectrum.checked import Checked, check_products
from curvcli.analyses.shared.spectrum.eigenpairs import Reach
from curvcli.analyses.shared.spectrum.matrices import untouched_zeros
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.shared.verdict import (
    Evidence,
    Verdict,
    classify,
    products_to_settle,
    region,
    stationarity_interval,
    stationarity_of,
)
from curvcli.errors import LossError
from curvcli.linalg.lanczos.factorization import LanczosState, start
from curvcli.linalg.lanczos.lanczos import LanczosResult, lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.operator import ROUNDING
from curvcli.linalg.stochastic.quadrature import Nodes, Stopped, gauss_rule, integrate
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.surface.line import (
    GradientNoise,
    gradient_noise,
)

# Products between two looks at the verdict.
_CHUNK = 8
# Ritz values of both ends need so many basis vectors.
_LEAST = 8
_MINIMA = ("local-minimum", "flat-minimum")


def run(subject: Subject, options: SaddleOptions, journal: Journal) -> Answer[SaddleResult]:
    """Answer `curvcli saddle`; see `SaddleOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    journal.progress(Stage("loading", 0, None))
    objective = subject.objective
    if objective.loss < options.loss_floor:
        raise LossError(
            f"the loss is {objective.loss:.6g}, below its floor of {options.loss_floor:g}",
            "pass the lowest value it can take as --loss-floor",
        )
    operator = Hessian(
        objective,
        memory=subject.spec.memory_bytes,
        wanted=4,
        preferred_capacity=max(options.max_matvecs + 2, _LEAST),
    )
    noise = gradient_noise(operator)
    scales = Scales(operator, noise.norm, objective.loss - options.loss_floor)

    def weigh(found: LanczosResult, floor: float) -> Evidence:
        return _weighed(objective, scales, found, floor, options)

    found, state = _search(
        subject, journal, operator, weigh, options.tol, options.max_matvecs, 1 - options.probability
    )
    extremes = _certified(journal, operator, found)
    evidence = weigh(found, extremes.floor)
    evidence = convex_where_linear(operator, evidence, subject.spec.memory_bytes)
    if classify(evidence) in _MINIMA and evidence.gradient != "rounding":
        evidence = replace(evidence, promise=scales.promise(journal, evidence))
    escape = walk(journal, operator, evidence, found)
    verdict = "inconclusive" if extremes.check.wrong else _verdict(journal, evidence, escape)
    more = None
    if verdict == "inconclusive":
        more = products_to_settle(evidence, found.matvecs)
        _what_would_settle(journal, state, options.max_matvecs, evidence, scales)
    if verdict in _MINIMA:
        _look_at_the_output(subject, journal)
    if journal.stop() is not None:
        journal.cut_short()
    index = None
    if options.index:
        index = _index(subject, journal, operator, evidence, options.index_probes)
    seen = _Seen(found, extremes, evidence, noise, scales)
    result = _result(objective, seen, options, verdict, escape, more, index)
    _findings(journal, result)
    return journal.answer(result)


class _Seen(NamedTuple):
    """What a run measured."""

    found: LanczosResult
    extremes: "Extremes"
    evidence: Evidence
    noise: GradientNoise
    scales: Scales


def _result(
    objective: Objective,
    seen: _Seen,
    options: SaddleOptions,
    verdict: Verdict,
    escape: Escape | None,
    more: int | None,
    index: IndexEstimate | None,
) -> SaddleResult:
    """The answer's figures."""
    found, extremes, evidence, noise, scales = seen
    largest = max(extremes.low.residual, extremes.high.residual)
    norms = (
        max(0.0, evidence.norm - largest),
        max(abs(evidence.lower), abs(evidence.upper)),
    )
    return SaddleResult(
        verdict=verdict,
        probability=options.probability,
        stationarity=evidence.stationarity if math.isfinite(evidence.stationarity) else None,
        gradient_norm=noise.norm,
        gradient_noise=noise.noise,
        lambda_min=extremes.low,
        lambda_max=extremes.high,
        reach=Reach(evidence.lower, evidence.upper, options.probability),
        index_at_least=int((found.ritz_values_M < -evidence.floor).sum()),
        escape=escape,
        region=region(evidence),
        loss=objective.loss,
        floor=evidence.floor,
        newton_promise=evidence.promise,
        hvp_check=extremes.check.difference,
        stationarity_interval=stationarity_interval(noise.norm, norms, scales.height),
        parameters=objective.dimension,
        more_products=more,
        index=index,
    )


def _what_would_settle(
    journal: Journal, state: LanczosState, max_matvecs: int, evidence: Evidence, scales: Scales
) -> None:
    """Why an inconclusive run ended where it did."""
    if evidence.gradient == "unresolved":
        journal.find(UNRESOLVED, "gradient",
                     "the gradient is within its rounding, and the loss is not: what is stationary cannot be told",
                     value=scales.norm, threshold=scales.resolution.gradient)  # fmt: skip
    if not state.first_cycle:
        journal.note(
            "memory is used up, so the bounds of the spectrum cannot improve: raise --memory"
        )
    if state.matvecs >= max_matvecs:
        journal.cut_short("the budget of products ended before the verdict: raise --max-matvecs")


def _look_at_the_output(subject: Subject, journal: Journal) -> None:
    """A minimum at which the network says the same of every sample is none that anybody wants."""
    sane = subject.forward_pass()
    if sane is not None and sane.constant and sane.at_chance:
        journal.find(AT_CHANCE, "loss", "the output is the same for every sample, and the loss that of a constant",
                     value=sane.loss, threshold=sane.chance)  # fmt: skip


def _weighed(
    objective: Objective,
    scales: Scales,
    found: LanczosResult,
    floor: float,
    options: SaddleOptions,
) -> Evidence:
    """What the verdict rests on, from a run as far as it has come."""
    # Entries that no sample touches have exactly zero curvature.
    zero = untouched_zeros(objective, at_most=1)
    stationarity = stationarity_of(scales.norm, found.norm, scales.height)
    vanishes = stationarity <= options.grad_tol
    return Evidence(
        stationarity=stationarity,
        grad_tol=options.grad_tol,
        gradient="resolved" if vanishes else scales.gradient(found.norm),
        theta_min=min(float(found.ritz_values_M[0]), *zero, math.inf),
        theta_max=max(float(found.ritz_values_M[-1]), *zero, -math.inf),
        lower=min(found.lower - floor, *zero, math.inf),
        upper=max(found.upper + floor, *zero, -math.inf),
        floor=floor,
        flatness=options.flatness,
    )


def _search(
    subject: Subject,
    journal: Journal,
    operator: Hessian,
    weigh: Callable[[LanczosResult, float], Evidence],
    tol: float,
    max_matvecs: int,
    probability: float,
) -> tuple[LanczosResult, LanczosState]:
    """Products until both extremes have converged and the verdict is settled."""
    wanted = Wanted(1, 1) if operator.n > 1 else Wanted(1, 0)
    state = start(operator, operator.plan.capacity, subject.spec.seed)
    eps = torch.finfo(operator.dtype).eps
    while True:
        left = max_matvecs - state.matvecs
        # Once the extremes have converged only the reach is of interest: a tolerance of 0 goes on.
        found = lanczos(
            operator, wanted, tol=tol, max_matvecs=min(_CHUNK, left), probability=probability,
            recheck=0, state=state, stop=journal.stop,
        )  # fmt: skip
        if found.status == "converged":
            evidence = weigh(found, ROUNDING * eps * found.norm)
            if classify(evidence) != "inconclusive" or state.processed == operator.n:
                return found, state
            if evidence.vanishes or not state.first_cycle or left <= 0:
                return found, state
            found = lanczos(
                operator, wanted, tol=0.0, max_matvecs=min(_CHUNK, left), probability=probability,
                recheck=0, state=state, stop=journal.stop,
            )  # fmt: skip
        verdict = classify(weigh(found, ROUNDING * eps * found.norm))
        detail = f"so far: {verdict}"
        journal.progress(Stage("products", state.matvecs, max_matvecs, detail))
        if state.matvecs >= max_matvecs or found.status in ("timeout", "interrupted"):
            return found, state


class Extremes(NamedTuple):
    """Both ends with true residuals, and the floor below which curvature is rounding."""

    low: Extreme
    high: Extreme
    floor: float
    check: Checked


def _certified(journal: Journal, operator: Hessian, found: LanczosResult) -> Extremes:

    certified = certified_pairs(journal, operator, found, tol=1.0)
    floor = max(ROUNDING * torch.finfo(operator.dtype).eps * found.norm, certified.rounding)
    check = check_products(journal, operator, certified.vector_N, certified.product_N)
    ends = [Extreme(pair.value, pair.residual) for pair in certified.pairs]
    if operator.finite_differences:
        # Their truncation error is of the order eps^(2/3) and does not show as an asymmetry.
        floor += 10 * torch.finfo(operator.dtype).eps ** (2 / 3) * found.norm
    return Extremes(ends[-1], ends[0], floor, check)


def _verdict(journal: Journal, evidence: Evidence, escape: Escape | None) -> Verdict:
    """The verdict of the evidence, held against the walk."""
    verdict = classify(evidence)
    if escape is None:
        return verdict
    if verdict == "strict-saddle" and not escape.falls:
        journal.find(
            UNCONFIRMED, "escape",
            "negative curvature was found, but the loss does not fall along it by more than rounding",
            value=evidence.theta_min, threshold=-evidence.floor,
        )  # fmt: skip
    if verdict in ("flat-minimum", "inconclusive") and evidence.stationary and escape.falls:
        journal.find(
            DEGENERATE, "escape",
            "the loss falls along the flattest direction although the curvature there is within "
            "rounding of zero: a degenerate point, whose kind the second derivative cannot tell",
            value=evidence.theta_min, threshold=-evidence.floor,
        )  # fmt: skip
        return "inconclusive"
    return verdict


def _index(
    subject: Subject, journal: Journal, operator: Hessian, evidence: Evidence, probes: int
) -> IndexEstimate:

    below = -max(evidence.floor, evidence.flatness * evidence.norm)
    generator = torch.Generator().manual_seed(subject.spec.seed + 1)
    rules: list[Nodes] = []
    for probe in range(probes):
        journal.progress(Stage("index", probe, probes))
        try:
            rules.append(gauss_rule(operator, min(operator.n, 60), generator, journal.stop))
        except Stopped as early:  # the first probe counts as far as it came
            rules = rules or [early.rules.nodes]
            break
    estimate = integrate(rules, lambda theta_M: (theta_M < below).astype(float), operator.n)
    return IndexEstimate(below, estimate.value, estimate.standard_error, len(rules))


def _findings(journal: Journal, result: SaddleResult) -> None:
    if result.verdict == "strict-saddle":
        journal.find(
            STRICT, "verdict",
            f"the weights sit at a saddle with at least {result.index_at_least} directions of negative "
            "curvature: training has not reached a minimum",
            value=result.lambda_min.value, threshold=-result.floor,
        )  # fmt: skip
    elif result.verdict == "local-maximum":
        journal.find(MAXIMUM, "verdict", "the weights sit at a maximum of the loss",
                     value=result.lambda_max.value, threshold=-result.floor)  # fmt: skip
    elif result.verdict == "inconclusive" and result.more_products is not None:
        journal.find(
            INCONCLUSIVE, "verdict",
            f"about {result.more_products} more products would settle it (--max-matvecs)",
            value=float(result.more_products),
        )  # fmt: skip
