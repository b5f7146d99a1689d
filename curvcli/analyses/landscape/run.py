"""`curvcli landscape`: the loss along a line or over a plane, its quadratic model, barriers and paths."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor

from curvcli.analyses.landscape.command import ALONG, LandscapeOptions
from curvcli.analyses.landscape.findings import BARRIER, LOWER, NONFINITE
from curvcli.analyses.landscape.judge import CERTAIN, barrier, bend, lowest
from curvcli.analyses.landscape.model import Model
from curvcli.analyses.landscape.result import (
    Axis,
    LandscapeResult,
    Mark,
    Quadratic,
)
from curvcli.analyses.landscape.scan import Scan, grid, look_at_grid, look_closer
from curvcli.analyses.landscape.tables import as_curve, as_map, number
from curvcli.analyses.landscape.ways import Read, Way, Ways, choose, names_of, read
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.checked import Checked, check_products
from curvcli.analyses.shared.spectrum.saved import run_log
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import UsageError, did_you_mean
from curvcli.linalg.operator import ROUNDING
from curvcli.linalg.ranks import Ranks
from curvcli.linalg.run_log import Logged, RunLog
from curvcli.linalg.vectors import double
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.rounding import product_error
from curvcli.operators.surface.line import loss_resolution
from curvcli.operators.surface.plane import Surface, running_norms

_CURVE, _MAP = 25, 17
# How far eigenvectors and gradient are looked along: so many times where the model has changed by the loss.
_FAR = 2.0
# One draw of rounding may be so many times smaller than another.
_ONE_DRAW = 3


def run(subject: Subject, options: LandscapeOptions, journal: Journal) -> Answer[LandscapeResult]:
    """Answer `curvcli landscape`; see `LandscapeOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    _check(options)
    journal.progress(Stage("loading", 0, None))
    objective = subject.objective
    other = _other(subject, options)
    given = read(subject, options)
    operator = Hessian(objective, memory=subject.spec.memory_bytes, wanted=5)
    norms = bool(running_norms(objective.model))
    asked = options.norm_statistics or ("recompute" if options.to else "keep")
    recompute = norms and asked == "recompute"
    key = ""
    if options.state:
        fixed = replace(options, state=None, timeout=None)
        digest = _digest(other)
        key = f"landscape {subject.fingerprint()} {fixed} {given.digest(operator.ranks)} {subject.spec.seed} {digest}"
    with run_log(options.state, key, journal, operator.ranks) as log:
        result = _looked(subject, options, journal, operator, given, other, recompute, log)
    kind = "none" if not norms else "recompute" if recompute else "keep"
    result = replace(result, norm_statistics=kind)
    if result.missing:
        journal.cut_short(f"ended early: {result.missing} points were not looked at")
    _find(journal, result)
    return journal.answer(result)


def _check(options: LandscapeOptions) -> None:
    for name in options.along:
        if name not in ALONG:
            raise UsageError(
                f"there is no direction {name!r}.{did_you_mean(name, ALONG)}",
                f"directions: {', '.join(ALONG)}",
            )
    if "pca" not in options.along:
        names_of(options)
    elif len(options.along) > 1:
        raise UsageError(
            "pca chooses all directions itself", "leave the other directions of --along out"
        )
    if options.optimizer is not None and "adam" not in options.along:
        raise UsageError("--optimizer has a meaning for --along adam only", "leave it out")


def _other(subject: Subject, options: LandscapeOptions) -> Objective | None:
    """The same network on the second data set."""
    if options.other_data is None:
        return None
    if subject.live:
        raise UsageError(
            "--other-data names a file, and the data at hand are objects",
            "ask again with the other data",
        )
    spec = replace(subject.spec, data=options.other_data, shard=subject.divided)
    named = subject.again(spec)
    theirs = named.objective
    # The same model and θ; what only the other data look up does not move.
    return dataclasses.replace(
        subject.objective,
        batches=theirs.batches, terms=theirs.terms, weight=theirs.weight, loss=theirs.loss,
    )  # fmt: skip


def _digest(other: Objective | None) -> str:
    return "" if other is None else repr((other.loss, other.weight, other.samples))


class _Products(NamedTuple):
    """What products say of the directions."""

    axes: list[Axis]
    model: Model
    check: Checked


def _products(
    operator: Hessian, journal: Journal, ways: Ways, log: RunLog, options: LandscapeOptions
) -> _Products:
    """Slopes, curvatures and the quadratic model along the directions."""
    logged, objective = Logged(operator, log), operator.objective
    deltas = [w.delta_N for w in ways.ways]
    products = [logged.matvec(d_N) for d_N in deltas]
    ranks = operator.ranks
    slopes = tuple(_dot(operator.gradient, d_N, ranks) for d_N in deltas)
    curvatures = tuple(tuple(_dot(a_N, h_N, ranks) for h_N in products) for a_N in deltas)
    axes = []
    for i, (way, d_N, h_N) in enumerate(zip(ways.ways, deltas, products, strict=True)):
        norm = float(ranks.norm(d_N))
        residual = ROUNDING * torch.finfo(operator.dtype).eps * norm * float(ranks.norm(h_N))
        if (
            journal.stop() is None
            and (seen := product_error(operator, d_N[None], h_N[None])) is not None
        ):
            residual += _ONE_DRAW * abs(_dot(d_N, seen.error_RN[0], ranks))
        low, high = _range(way, objective.loss, slopes[i], curvatures[i][i])
        axes.append(Axis(way.name, norm, low, high, slopes[i], curvatures[i][i], residual))
    check = Checked(None, False)
    if journal.stop() is None:
        check = check_products(journal, operator, deltas[0], products[0])
    gram = tuple(tuple(_dot(a_N, b_N, ranks) for b_N in deltas) for a_N in deltas)
    rounding = max(
        8 * torch.finfo(objective.dtype).eps * abs(objective.loss), loss_resolution(operator)
    )
    model = Model(objective.loss, slopes, curvatures, gram, options.trust, rounding)
    return _Products(axes, model, check)


def _dot(a_N: Tensor, b_N: Tensor, ranks: Ranks) -> float:
    return float(ranks.dot(double(a_N), double(b_N)))


def _range(way: Way, loss: float, slope: float, curvature: float) -> tuple[float, float]:
    """As the way says, else until the model has changed by about the loss."""
    if way.low is not None and way.high is not None:
        return way.low, way.high
    height = abs(loss) or 1.0
    lengths = [
        *([math.sqrt(2 * height / abs(curvature))] if curvature else []),
        *([height / abs(slope)] if slope else []),
    ]
    far = _FAR * min(lengths, default=1.0 / _FAR)
    return -far, far


def _looked(
    subject: Subject,
    options: LandscapeOptions,
    journal: Journal,
    operator: Hessian,
    given: Read,
    other: Objective | None,
    recompute: bool,
    log: RunLog,
) -> LandscapeResult:
    """The points, and what they say."""
    journal.progress(Stage("directions", 0, None))
    ways = choose(subject, options, journal, operator, given, log)
    products = _products(operator, journal, ways, log, options)
    deltas = [w.delta_N for w in ways.ways]
    surface, second = (
        Surface(o, deltas, operator, subject.objective if recompute else None) if o else None
        for o in (subject.objective, other)
    )
    assert surface is not None
    scan = Scan(surface, second, log, journal)
    model = dataclasses.replace(products.model, loss=scan.centre.loss)
    curve = len(deltas) == 1
    points = options.points or (_CURVE if curve else _MAP)
    axes = [grid(axis.low, axis.high, points) for axis in products.axes]
    scan.expected = points ** len(axes) + options.refine
    marks = [
        Mark(name, place, off, number(scan.loss(tuple(place)))) for name, place, off in ways.marks
    ]
    look_at_grid(scan, axes)
    look_closer(scan, None if recompute else model, options.refine, curve)
    barriers = []
    if marks and "pca" not in options.along:
        ends = [(m.name, tuple(m.place)) for m in marks]
        made = [barrier(scan, model, pair) for pair in itertools.combinations(ends, 2)]
        barriers = [b for b in made if b is not None]
    quadratic = None
    if not recompute:
        right_to, wrong_from = model.right_to(scan.known)
        mixed = None if curve else model.curvatures[0][1]
        quadratic = Quadratic(mixed, options.trust, right_to, wrong_from)
    shown = None if recompute else model
    return LandscapeResult(
        axes=products.axes,
        cosine=ways.cosine,
        loss=scan.centre.loss,
        loss_standard_error=scan.centre.error(),
        curve=as_curve(scan, model, shown) if curve else [],
        map=None if curve else as_map(scan, axes, shown),
        lowest=lowest(scan, model),
        bend=bend(scan, model, axes),
        quadratic=quadratic,
        marks=marks,
        barriers=barriers,
        variance_shares=ways.shares,
        path="pca" in options.along,
        norm_statistics="none",
        nonfinite=sum(not math.isfinite(s.loss) for s in scan.known.values()),
        missing=scan.missing,
        evaluations=len(scan.known),
        parts=len(scan.centre.sums_P),
        parameters=subject.objective.dimension,
        hvp_check=products.check.difference,
    )


def _find(journal: Journal, result: LandscapeResult) -> None:
    low = result.lowest
    if low is not None and low.lower and low.beyond_sampling is not False and not result.path:
        journal.find(
            LOWER, "lowest",
            f"the loss is {low.loss:.4g} at a distance of {low.distance:.3g}, and {result.loss:.4g} at the weights",
            value=low.change, threshold=0.0,
        )  # fmt: skip
    for b in result.barriers:
        error = CERTAIN * (b.height_standard_error or 0.0) + b.height_residual
        if b.height is None or b.height > error:
            told = "where the loss is not finite" if b.height is None else f"of {b.height:.4g}"
            journal.find(
                BARRIER, f"{b.a} to {b.b}",
                f"between {b.a} and {b.b} lies a barrier {told}, {b.position:.0%} of the way", value=b.height,
            )  # fmt: skip
    if result.nonfinite:
        journal.find(
            NONFINITE, "loss",
            f"the loss is NaN or Inf at {result.nonfinite} of {result.evaluations} points",
            value=float(result.nonfinite),
        )  # fmt: skip
