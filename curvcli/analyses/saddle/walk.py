"""The loss along the direction of the lowest curvature: what proves a saddle."""

import math

from curvcli.analyses.saddle.result import Escape, Share, WalkPoint
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.verdict import Evidence
from curvcli.linalg.lanczos.lanczos import LanczosResult
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.surface.line import Line, layer_shares

# Radii of the walk, as shares of √(2L/|λ|): the model predicts a fall of their squares times L.
_WALK = (0.01, 0.03, 0.1, 0.3, 1.0)
# Parameters named in the escape direction.
_SHARES = 12


def walk(
    journal: Journal,
    operator: Hessian,
    evidence: Evidence,
    found: LanczosResult,
) -> Escape | None:
    """The loss along ± the lowest Ritz vector, at radii from where the model holds to where it bends.

    None where that says nothing, or the run ends on the way: a part of a walk proves nothing.
    """
    objective = operator.objective
    bends_down = evidence.theta_min < -evidence.floor
    if not evidence.stationary and not bends_down:
        return None
    v_N = found.vectors_KN[-1]
    line = Line(objective, v_N, operator)
    slope = float(operator.ranks.dot(operator.gradient, v_N))
    scale = abs(evidence.theta_min) if bends_down else evidence.norm
    height = abs(objective.loss) or 1.0
    unit = math.sqrt(2 * height / scale) if scale > 0 else 1.0
    points: list[WalkPoint] = []
    falls = False
    for share in _WALK:
        for sign in (1.0, -1.0):
            if journal.stop() is not None:
                return None
            journal.progress(Stage("walk", len(points), 2 * len(_WALK)))
            radius = sign * share * unit
            change = line(radius) - objective.loss
            predicted = slope * radius + 0.5 * evidence.theta_min * radius**2
            points.append(WalkPoint(radius, change if math.isfinite(change) else None, predicted))
            # A slope that is left over, and curvature within the floor, are no proof of a way down.
            spare = line.resolution + abs(slope * radius) + 0.5 * evidence.floor * radius**2
            falls = falls or change < -spare
    shares = [Share(name, share) for name, share in layer_shares(objective, v_N, _SHARES)]
    return Escape(evidence.theta_min, shares, points, falls)
