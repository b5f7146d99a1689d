"""Whether the gradient vanishes: beside its own rounding, beside the loss above its floor, and beside a Newton step."""

import math
from dataclasses import replace
from functools import cached_property

import torch

from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.verdict import Evidence, Gradient, region
from curvcli.errors import LossError
from curvcli.linalg.operator import random_unit_vector
from curvcli.linalg.stochastic.quadrature import Stopped
from curvcli.operators.curvature.gauss_newton import GaussNewton
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.surface.line import Line, Resolution, newton_promise, resolution_of

# ‖g‖ above so many eps ‖H‖ ‖θ‖ is no rounding, and needs no measurement.
_CLEARLY = 1e3
# A draw of rounding may be so many times smaller than another.
_MARGIN = 3
# Relative length of a short walk, and the share of the loss there that is negligible.
_SHORT, _NEGLIGIBLE = 1e-2, 1e-3
# Losses that are convex in the outputs.
_CONVEX = (
    "mse",
    "cross_entropy",
    "token_cross_entropy",
    "bce_with_logits",
    "l1",
    "smooth_l1",
    "huber",
)
# Rounding of a product, in units of eps ‖H‖.
_ROUNDING = 100
# ε of the Newton step, relative to ‖H‖, and the products for it.
_EPSILON, _STEPS = 1e-5, 40


class Scales:
    """The gradient beside its rounding and beside the loss above its floor; measured when it is asked for."""

    def __init__(self, operator: Hessian, norm: float, height: float) -> None:
        self.operator, self.norm, self.height = operator, norm, height
        self.theta = float(operator.ranks.norm(operator.objective.flat()))
        self.eps = torch.finfo(operator.dtype).eps

    @cached_property
    def resolution(self) -> Resolution:
        """Of gradient and loss."""
        return resolution_of(self.operator)

    @cached_property
    def away(self) -> float:
        """The height of the loss a short walk away."""
        objective = self.operator.objective
        direction_N = random_unit_vector(self.operator, torch.Generator().manual_seed(0))
        there = Line(objective, direction_N, self.operator)(_SHORT * self.theta)
        return there - objective.loss + self.height

    def gradient(self, norm_of_h: float) -> Gradient:
        """What the gradient is beside its rounding."""
        if self.norm > _CLEARLY * self.eps * norm_of_h * self.theta:
            return "resolved"
        if self.norm > _MARGIN * self.resolution.gradient:
            return "resolved"
        lost = self.height <= _MARGIN * self.resolution.loss
        return "rounding" if lost and self.height <= _NEGLIGIBLE * self.away else "unresolved"

    def promise(self, journal: Journal, evidence: Evidence) -> float:
        """The share of the loss above its floor that a Newton step promises, at most; infinite where cut short."""
        if self.norm == 0:
            return 0.0
        if journal.stop() is not None or self.height <= 0:
            return math.inf
        journal.progress(Stage("Newton step", 0, None))
        epsilon = max(evidence.floor, _EPSILON * evidence.norm)
        try:
            found = newton_promise(self.operator, epsilon, _STEPS, journal.stop)
        except Stopped:
            return math.inf
        return (found.value + found.error) / self.height


def convex_where_linear(operator: Hessian, evidence: Evidence, memory: int | None) -> Evidence:
    """With the reach that is certain where the network is linear in its parameters and the loss convex in its outputs.

    Then ∇²L = JᵀCJ, the Gauss-Newton matrix, which has no negative eigenvalue (Martens, JMLR 21, 2020, section 8).
    A product with a random vector tells it: any other part of ∇²L would show there.
    """
    loss = operator.objective.terms
    if region(evidence) != "unknown" or getattr(loss, "name", "") not in _CONVEX:
        return evidence
    v_N = random_unit_vector(operator, torch.Generator().manual_seed(1))
    try:
        product_N = GaussNewton(operator.objective, memory=memory, wanted=1).matvec(v_N)
    except LossError:
        return evidence
    rest = float(operator.ranks.norm(operator.matvec(v_N) - product_N))
    # Both products are rounded by some eps ‖H‖; the rest of ∇²L is some percent of ‖H‖ in usual networks.
    if rest > _ROUNDING * torch.finfo(operator.dtype).eps * evidence.norm:
        return evidence
    return replace(evidence, lower=max(evidence.lower, -evidence.floor))
