"""Other initialisations of the same network beside the checkpoint: gain, χ and sharpness."""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from curvcli.analyses.gradients.result import Scheme, Spread
from curvcli.analyses.shared.context import Context, Stage
from curvcli.errors import CurvError

if TYPE_CHECKING:
    from curvcli.objective.objective import Objective

# Products that λ_max may take, and its tolerance: a comparison of schemes, not a certificate.
_MATVECS = 60
_TOLERANCE = 1e-2

_Run = dict[str, float]


def compare(
    context: Context, objective: "Objective", schemes: Sequence[str], seeds: int
) -> list[Scheme]:
    """Measure each scheme with each seed; the one whose gradient keeps its size best comes first."""
    from curvcli.analyses.gradients.reinit import reinitialised

    found = [_scheme("checkpoint", [_measure(context, objective)])]
    for index, name in enumerate(schemes):
        runs: list[_Run] = []
        for seed in range(context.spec.seed, context.spec.seed + seeds):
            if context.stop():
                context.incomplete = True
                break
            done = index * seeds + len(runs)
            context.progress(Stage("initialisations", done, len(schemes) * seeds, name))
            with reinitialised(objective, name, seed) as unknown:
                runs.append(_measure(context, objective))
            if unknown and seed == context.spec.seed:
                context.notes.append(
                    f"{name} leaves {len(unknown)} parameters as they are: {', '.join(unknown[:3])}"
                )
        if runs:
            found.append(_scheme(name, runs))
    return sorted(found, key=_distance)


def _measure(context: Context, objective: "Objective") -> _Run:
    from curvcli.operators.signals.depth_trend import depth_trend
    from curvcli.operators.signals.gradient_flow import flow

    seen = flow(objective, parts=1, memory=context.spec.memory_bytes, details=False)
    trend = depth_trend(seen.recorder.signals.values(), objective.samples)
    per_layer, whole = trend.gain(1), trend.gain(trend.span)
    run = {
        "gain_per_layer": per_layer[0] if per_layer else math.nan,
        "chi": per_layer[0] ** 2 if per_layer else math.nan,
        "depth_gain": whole[0] if whole else math.nan,
        "loss": seen.loss,
    }
    sharpest, residual = _sharpness(context, objective) if seen.finite else (math.nan, math.nan)
    return {**run, "lambda_max": sharpest, "residual": residual}


def _sharpness(context: Context, objective: "Objective") -> tuple[float, float]:
    """(λ_max, its residual); NaN where the second derivative is not finite."""
    from curvcli.linalg.lanczos.factorization import start
    from curvcli.linalg.lanczos.lanczos import lanczos
    from curvcli.linalg.lanczos.ritz import Wanted
    from curvcli.operators.curvature.hessian import Hessian

    notes = len(objective.notes)
    try:
        operator = Hessian(objective, memory=context.spec.memory_bytes, wanted=1)
        run = start(operator, operator.plan.capacity, context.spec.seed)
        found = lanczos(
            operator, Wanted(1), tol=_TOLERANCE, max_matvecs=_MATVECS, recheck=0, state=run,
            stop=context.stop,
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
