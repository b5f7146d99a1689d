"""`curvcli density`: the whole spectrum as a density, with a band, and its outliers by name."""

import math
from typing import Any, Literal

import numpy as np
import torch

from curvcli.analyses.density.command import DensityOptions
from curvcli.analyses.density.findings import NOT_CONVERGED
from curvcli.analyses.density.result import (
    DensityResult,
    LogAxis,
    Moment,
    Outlier,
    Share,
    Status,
)
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.certified import certified_pairs
from curvcli.analyses.shared.spectrum.checked import Checked, check_random_product
from curvcli.analyses.shared.spectrum.matrices import Chosen, exact_spectrum, untouched_zeros
from curvcli.analyses.shared.spectrum.matrix_options import Matrix
from curvcli.analyses.shared.spectrum.saved import run_log, step
from curvcli.analyses.shared.subject import Subject
from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.operator import ROUNDING, Deflated, eigh, orthonormal
from curvcli.linalg.run_log import Kept, Logged, RunLog
from curvcli.linalg.statistics.student import quantile
from curvcli.linalg.stochastic.density import Curve, Density, Mass
from curvcli.linalg.stochastic.krylov import krylov
from curvcli.linalg.stochastic.quadrature import Nodes, Stopped, gauss_rules, random_complement
from curvcli.operators.curvature.curvature import Curvature

# Eigenvalues up to this share of the norm count as zero, where nothing else is asked for.
_ZERO = 1e-4
_POINTS = 240
_LOG_POINTS = 120
# Convergence of the outliers, relative.
_TOL = 1e-2


def run(subject: Subject, options: DensityOptions, journal: Journal) -> Answer[DensityResult]:
    """Answer `curvcli density`; see `DensityOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    journal.progress(Stage("loading", 0, None))
    # A matrix of fewer rows than the products that probes take is cheaper known as a whole.
    planned = options.probes * options.steps
    chosen = Chosen(options.matrix, options.draws, options.optimizer)
    operator, made = chosen.operator(
        subject,
        journal,
        wanted=options.outliers,
        preferred_capacity=max(200, 2 * options.steps, planned),
    )
    key = f"density {subject.fingerprint()} {chosen} {made}" if options.state else ""
    with run_log(options.state, key, journal, operator.ranks) as log:
        known = _all_known(subject, journal, operator, options.exact_rows, planned, log)
        if known is None:
            found, named, status, error = _sampled(subject, journal, operator, options, log)
            method: Literal["probes", "gram", "whole"] = "probes"
        else:
            found, named, error, method = known
            status = "converged"
    check, rounding = check_random_product(journal, operator, subject.spec.seed)
    result = _result(
        operator,
        found,
        named,
        error,
        options.zero,
        options.matrix,
        options.steps,
        status,
        method,
        options.outliers,
        check,
        rounding.frobenius,
    )
    spread = found.spread()
    if status != "converged":
        journal.cut_short()
        journal.find(
            NOT_CONVERGED, "wasserstein",
            "the random probes do not agree to within --tol yet: "
            + ("raise --max-probes" if status == "max_matvecs" else "the run ended early"),
            value=spread, threshold=options.tol * found.scale(),
        )  # fmt: skip
    return journal.answer(result)


_Named = list[Outlier]


def _all_known(
    subject: Subject,
    journal: Journal,
    operator: Curvature[Any],
    rows: int,
    planned: int,
    log: RunLog,
) -> tuple[Density, _Named, float, Literal["gram", "whole"]] | None:
    """The density where all eigenvalues can be had."""
    n = operator.objective.dimension
    zeros = untouched_zeros(operator.objective)
    gram = exact_spectrum(journal, operator, rows)
    if gram is not None:
        values = np.concatenate([gram.all_values(), zeros])
        return Density(n, values, []), [], gram.error, "gram"
    if operator.n > min(planned, operator.plan.capacity):
        return None
    generator = torch.Generator().manual_seed(subject.spec.seed)
    whole = krylov(Logged(operator, log), operator.n, generator, stop=journal.stop)
    if whole.kept < operator.n:
        return None
    values = np.concatenate([eigh(whole.t_LL)[0], zeros])
    error = ROUNDING * torch.finfo(operator.dtype).eps * float(np.abs(values).max())
    return Density(n, values, []), [], error, "whole"


def _sampled(
    subject: Subject,
    journal: Journal,
    operator: Curvature[Any],
    options: DensityOptions,
    log: RunLog,
) -> tuple[Density, _Named, Status, float]:
    """Outliers by Lanczos, the rest by probes on their complement."""
    vectors_KN = torch.zeros(0, operator.length, dtype=operator.dtype, device=operator.device)
    named, error = list[Outlier](), 0.0
    if options.outliers:
        name = f"outliers {options.outliers} {subject.spec.seed}"
        kept = step(log, journal, name, lambda: _outliers(subject, journal, operator, options, log))
        named = [Outlier(*pair) for pair in kept["pairs"].tolist()]
        vectors_KN, error = kept["vectors"].to(operator.device), kept["error"].item()
    known_K = np.array([*(o.value for o in named), *untouched_zeros(operator.objective)])
    found = Density(operator.objective.dimension, known_K, [])
    generator = torch.Generator().manual_seed(subject.spec.seed + 1)
    rest = Deflated(Logged(operator, log), vectors_KN)
    steps = min(options.steps, operator.plan.capacity)

    def probe() -> Kept:
        q_N = random_complement(operator, vectors_KN, generator)
        return {"nodes": gauss_rules(rest, q_N, steps, journal.stop).nodes.tensor()}

    while True:
        try:
            kept = log.step(f"probe {steps}", generator, probe)
        except Stopped as early:  # the first probe counts as far as it came
            if not found.rules:
                found.rules.append(early.rules.nodes)
            return found, named, early.reason, error
        found.rules.append(Nodes(*kept["nodes"].numpy()))
        done = len(found.rules)
        journal.progress(Stage("probes", done, None, f"{found.spread():.2g} apart"))
        if done >= options.probes and found.spread() <= options.tol * found.scale():
            return found, named, "converged", error
        if (reason := journal.stop()) is not None:
            return found, named, reason, error
        if done >= max(options.probes, options.max_probes):
            return found, named, "max_matvecs", error


def _outliers(
    subject: Subject,
    journal: Journal,
    operator: Curvature[Any],
    options: DensityOptions,
    log: RunLog,
) -> Kept:
    """Leading eigenpairs (value, residual), their vectors, and the rounding in the values."""
    wanted = Wanted(options.outliers - options.outliers // 4, options.outliers // 4)
    run = start(operator, operator.plan.capacity, subject.spec.seed)
    leading = lanczos(
        Logged(operator, log), wanted, tol=_TOL, recheck=0, state=run, stop=journal.stop,
        progress=lambda p: journal.progress(Stage("outliers", p.converged, p.wanted)),
    )  # fmt: skip
    run.basis.drop()
    certified = certified_pairs(journal, operator, leading, _TOL)
    # A matrix with few eigenvalues gives one pair at both ends.
    order = np.argsort([-p.value for p in certified.pairs])
    chosen = [int(i) for i in order if leading.converged_K[i]]
    pairs = [(certified.pairs[i].value, certified.pairs[i].residual) for i in chosen]
    return {
        "vectors": orthonormal(leading.vectors_KN[chosen], operator.ranks),
        "pairs": torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2),
        "error": torch.tensor(certified.rounding, dtype=torch.float64),
    }


def _result(
    operator: Curvature[Any],
    found: Density,
    named: _Named,
    error: float,
    zero: float | None,
    matrix: Matrix,
    steps: int,
    status: Status,
    method: Literal["probes", "gram", "whole"],
    asked: int,
    check: Checked,
    rounding: float,
) -> DensityResult:

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
    # An eigenvalue moves by no more than ‖E‖_F (Hoffman & Wielandt).
    edges_of_zero = max(0.0, zero - rounding), zero + rounding
    return DensityResult(
        matrix=matrix,
        grid=linear.grid_G.tolist(),
        density=linear.density_G.tolist(),
        standard_error=linear.standard_error_G.tolist(),
        kernel_width=bulk.kernel_width(),
        log_axis=LogAxis(plus.grid_G.tolist(), *_lists(plus), *_lists(minus)),
        moments=[_moment(found, k, rounding) for k in (1, 2, 3, 4)],
        mass_at_zero=_share(found.within(zero), degrees, [found.within(z) for z in edges_of_zero]),
        mass_below_zero=_share(
            found.below(-zero), degrees, [found.below(-z) for z in reversed(edges_of_zero)]
        ),
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
        hvp_check=check.difference,
    )


def _moment(found: Density, order: int, rounding: float) -> Moment:
    """Mean of λ^order; an error E of the matrix moves it by order/n ‖H^(order − 1)‖_F ‖E‖_F at most."""
    value, error = found.moment(order)
    below = found.moment(2 * order - 2)[0] if order > 1 else 1.0
    moved = order * math.sqrt(max(0.0, below) / found.n) * rounding
    return Moment(order, value, math.hypot(error, moved), found.degrees)


def _lists(curve: Curve) -> tuple[list[float], list[float]]:
    return curve.density_G.tolist(), curve.standard_error_G.tolist()


def _share(mass: Mass, degrees: int, beside: list[Mass]) -> Share:
    """The share with its interval; ``beside`` are those with the threshold moved by rounding, inward and outward."""
    if math.isnan(mass.standard_error):  # a single probe does not tell its own error
        return Share(mass.value, None, degrees, (0.0, 1.0))
    margin = quantile(0.95, degrees) * mass.standard_error if degrees else 0.0
    low, high = min(mass.low, beside[0].low), max(mass.high, beside[1].high)
    return Share(
        mass.value, mass.standard_error, degrees, (max(0.0, low - margin), min(1.0, high + margin))
    )
