"""Other initialisations of the same network beside the checkpoint: gain, χ and sharpness."""

import math
import statistics
from collections.abc import Sequence

from curvcli.analyses.gradients.reinit import reinitialised
from curvcli.analyses.gradients.result import Scheme, Spread
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import CurvError
from curvcli.linalg.lanczos.factorization import start
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.objective.objective import Objective
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.signals.depth_trend import depth_trend
from curvcli.operators.signals.gradient_flow import flow

# Products that λ_max may take, and its tolerance: a comparison of schemes, not a certificate.
_MATVECS = 60
_TOLERANCE = 1e-2

_Run = dict[str, float]


def compare(
    subject: Subject, journal: Journal, objective: Objective, schemes: Sequence[str], seeds: int
) -> list[Scheme]:
    """Measure each scheme with each seed; the one whose gradient keeps its size best comes first."""
    found = [_scheme("checkpoint", [_measure(subject, journal, objective)])]
    for index, name in enumerate(schemes):
        runs: list[_Run] = []
        for seed in range(subject.spec.seed, subject.spec.seed + seeds):
            if journal.stop():
                journal.cut_short()
                break
            done = index * seeds + len(runs)
            journal.progress(Stage("initialisations", done, len(schemes) * seeds, name))
            with reinitialised(objective, name, seed) as unknown:
                runs.append(_measure(subject, journal, objective))
            if unknown and seed == subject.spec.seed:
                journal.note(
                    f"{name} leaves {len(unknown)} parameters as they are: {', '.join(unknown[:3])}"
                )
        if runs:
            found.append(_scheme(name, runs))
    return sorted(found, key=_distance)


def _measure(subject: Subject, journal: Journal, objective: Objective) -> _Run:

    seen = flow(objective, parts=1, memory=subject.spec.memory_bytes, details=False)
    trend = depth_trend(seen.recorder.signals.values(), objective.samples)
    per_layer, whole = trend.gain(1), trend.gain(trend.span)
    run = {
        "gain_per_layer": per_layer[0] if per_layer else math.nan,
        "chi": per_layer[0] ** 2 if per_layer else math.nan,
        "depth_gain": whole[0] if whole else math.nan,
        "loss": seen.loss,
    }
    sharpest, residual = (
        _sharpness(subject, journal, objective) if seen.finite else (math.nan, math.nan)
    )
    return {**run, "lambda_max": sharpest, "residual": residual}


def _sharpness(subject: Subject, journal: Journal, objective: Objective) -> tuple[float, float]:
    """(λ_max, its residual); NaN where the second derivative is not finite."""
    notes = len(objective.notes)
    try:
        operator = Hessian(objective, memory=subject.spec.memory_bytes, wanted=1)
        run = start(operator, operator.plan.capacity, subject.spec.seed)
        found = lanczos(
            operator, Wanted(1), tol=_TOLERANCE, max_matvecs=_MATVECS, recheck=0, state=run,
            stop=journal.stop,
        )  # fmt: skip
    except CurvError:
        return math.nan, math.nan
    finally:
        # The same switches of kernels for every seed: said once.
        repeated = [n for n in objective.notes[notes:] if n in objective.notes[:notes]]
        for note in repeated:
            objective.notes.remove(note)
    return float(found.values_K[0]), float(found.bounds_K[0])


def _scheme(name: str, runs: list[_Run]) -> Scheme:
    def spread(key: str) -> Spread:
        values = sorted(r[key] for r in runs if math.isfinite(r[key]))
        if not values:
            return Spread(None, None, None)
        return Spread(statistics.median(values), values[0], values[-1])

    residuals = [r["residual"] for r in runs if math.isfinite(r["residual"])]
    return Scheme(
        name=name,
        seeds=len(runs),
        gain_per_layer=spread("gain_per_layer"),
        depth_gain=spread("depth_gain"),
        chi=spread("chi"),
        lambda_max=spread("lambda_max"),
        lambda_max_residual=max(residuals, default=None),
        loss=spread("loss"),
    )


def _distance(scheme: Scheme) -> float:
    """How many decades the gradient gains or loses over the depth."""
    gain = scheme.depth_gain.median
    return abs(math.log10(gain)) if gain else math.inf
