"""Sums over the spectrum of a curvature matrix: from its whole spectrum where that is cheap, else by random vectors."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.checked import MatrixError
from curvcli.analyses.shared.spectrum.matrices import exact_spectrum
from curvcli.analyses.trace.result import Status
from curvcli.linalg.operator import Float64Array
from curvcli.linalg.run_log import Logged, RunLog
from curvcli.linalg.stochastic.quadrature import gauss_rule
from curvcli.linalg.stochastic.spectral_sums import RULES, Goal, SpectralSum, estimate
from curvcli.linalg.vectors import double
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.curvature.hessian import Hessian

# Damping where none is given, relative to the largest eigenvalue.
_DAMPING = 1e-2
# Products that tell the scale of the spectrum.
_PILOT = 12


class SumPlan(NamedTuple):
    """How much is spent on the sums, as asked for."""

    tol: float
    """Standard errors are below this, relative, when they are good enough."""
    deflate: int
    """Krylov vectors to be exact on."""
    steps: int
    """Products of a random vector for functions of the spectrum, at most."""
    probes: int
    """Random vectors at least."""
    max_matvecs: int
    """Products at most."""

    @property
    def expected(self) -> int:
        """Products that the first probes take: a matrix of fewer rows is cheaper known as a whole."""
        rules = min(RULES, self.probes)
        made = self.deflate + (rules + 1) * self.steps + self.probes - rules
        return min(made, self.max_matvecs)


class SpectrumSums(NamedTuple):
    """What is known of the spectrum."""

    trace: SpectralSum
    squares: SpectralSum
    effective: SpectralSum
    participation: SpectralSum
    blocks: list[SpectralSum]
    probes: int
    steps: int
    deflated: int
    status: Status
    method: Literal["probes", "gram", "whole"]
    slope: float
    """√Σ f′(λ)² of the effective dimension: how an error of the matrix moves it."""

    def rounded(self, error: MatrixError) -> "SpectrumSums":
        """The same, with what the rounding of the matrix adds to each error, to first order in it."""
        total, squares = abs(self.trace.value), max(self.squares.value, 0.0)
        of_squares = 2 * squares**0.5 * error.frobenius
        relative = sum(e / x for e, x in ((2 * error.trace, total), (of_squares, squares)) if x)
        return self._replace(
            trace=_widened(self.trace, error.trace),
            squares=_widened(self.squares, of_squares),
            effective=_widened(self.effective, self.slope * error.frobenius),
            participation=_widened(self.participation, relative * self.participation.value),
            blocks=[_widened(block, error.trace) for block in self.blocks],
        )


def _widened(found: SpectralSum, rounding: float) -> SpectralSum:
    return replace(found, standard_error=math.hypot(found.standard_error, rounding))


def spectrum_sums(
    journal: Journal,
    operator: Curvature[Any],
    plan: SumPlan,
    damping: float | None,
    rows: int,
    generator: torch.Generator,
    log: RunLog,
) -> tuple[SpectrumSums, float]:
    """The sums, and the damping of the effective dimension.

    Args:
        context: takes notes and progress.
        operator: the curvature matrix.
        plan: how much to spend.
        damping: as asked for; None: the weight decay, or a share of the largest eigenvalue.
        rows: up to so many rows the spectrum is computed exactly from their Gram matrix; 0: never.
        generator: of the random vectors.
        log: that the run goes on from.
    """
    gram = exact_spectrum(journal, operator, rows)
    if gram is None:
        return _estimated(journal, operator, plan, damping, generator, log)
    damping = _damping(operator, float(gram.values_R[0]), damping)
    blocks = _exact(_block_sums(operator)(gram.diagonal()).tolist())
    return _all_known(gram.all_values(), damping, blocks, "gram"), damping


def _estimated(
    journal: Journal,
    operator: Curvature[Any],
    plan: SumPlan,
    damping: float | None,
    generator: torch.Generator,
    log: RunLog,
) -> tuple[SpectrumSums, float]:
    """By Krylov space and probes; the damping is fixed by a few products where it is not given."""
    if damping is None and not operator.objective.weight_decay:
        largest = float(np.abs(gauss_rule(Logged(operator, log), _PILOT, generator).theta_M).max())
        damping = _damping(operator, largest, None)
    damping = _damping(operator, 0.0, damping)
    effective = partial(_effective, damping=damping, indefinite=_indefinite(operator))
    deflate = deflated(operator, plan)
    steps = max(1, min(plan.steps, operator.plan.capacity // 2 - deflate))
    found, status = estimate(
        operator,
        deflate,
        Goal(plan.tol, (effective,), steps, plan.probes, plan.max_matvecs),
        generator,
        blocks=_block_sums(operator),
        stop=journal.stop,
        progress=lambda done: journal.progress(Stage("products", done, None)),
        log=log,
    )
    steps = max((len(r.nodes.theta_M) for r in found.rules), default=0)
    whole = found.exact.kept == operator.n
    steep = partial(_slope_square, damping=damping, indefinite=_indefinite(operator))
    slope = math.sqrt(max(0.0, found.sum_of(steep).value)) if found.rules or whole else 0.0
    return SpectrumSums(
        found.trace(), found.square_sum(), found.sum_of(effective),
        found.participation_ratio(), found.block_traces(), len(found.forms), steps,
        found.exact.kept, status, "whole" if whole else "probes", slope,
    ), damping  # fmt: skip


def deflated(operator: Curvature[Any], plan: SumPlan) -> int:
    """Krylov vectors to be exact on: all, where they are so few that probes would cost more."""
    capacity = operator.plan.capacity
    if operator.n <= min(capacity, plan.expected):
        return operator.n
    return min(plan.deflate, capacity // 4)


def _damping(operator: Curvature[Any], largest: float, given: float | None) -> float:
    if given is not None:
        return given
    return operator.objective.weight_decay or _DAMPING * largest or 1.0


def _effective(x: Float64Array, damping: float, indefinite: bool) -> Float64Array:

    if indefinite:
        return np.square(x) / (np.square(x) + damping**2)
    positive = np.maximum(x, 0.0)  # below zero is rounding
    return positive / (positive + damping)


def _slope_square(x: Float64Array, damping: float, indefinite: bool) -> Float64Array:
    """The square of the derivative of `_effective`."""
    if indefinite:
        return np.square(2 * x * damping**2 / np.square(np.square(x) + damping**2))
    return np.square(damping / np.square(np.maximum(x, 0.0) + damping))


def _indefinite(operator: Curvature[Any]) -> bool:

    return isinstance(operator, Hessian)


def _block_sums(operator: Curvature[Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Sums over the tensors of the parameters."""
    tensors, ranks = operator.objective.tensors, operator.ranks

    def sums(v_N: torch.Tensor) -> torch.Tensor:
        return ranks.over_entries(torch.stack([double(v_N[held.own]).sum() for held in tensors]))

    return sums


def _exact(values: list[float]) -> list[SpectralSum]:

    return [SpectralSum(v, 0.0, 0) for v in values]


def _all_known(
    values: Float64Array, damping: float, blocks: list[SpectralSum], method: Literal["gram"]
) -> SpectrumSums:

    total, square = float(values.sum()), float(np.square(values).sum())
    effective = float(_effective(values, damping, indefinite=False).sum())
    ratio = total**2 / square if square else 0.0
    trace, squares, dimension, participation = _exact([total, square, effective, ratio])
    return SpectrumSums(
        trace,
        squares,
        dimension,
        participation,
        blocks,
        0,
        0,
        len(values),
        "converged",
        method,
        float(np.sqrt(_slope_square(values, damping, indefinite=False).sum())),
    )
