"""`curvcli sharpness`: worst and average rises of the loss around θ, and measures that rescaling leaves alone."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.certified import by_recurrence
from curvcli.analyses.shared.spectrum.checked import check_random_product
from curvcli.analyses.shared.spectrum.matrices import untouched_zeros
from curvcli.analyses.shared.subject import Subject
from curvcli.analyses.sharpness.command import MEASURES, USUAL, SharpnessOptions
from curvcli.analyses.sharpness.result import (
    AverageCase,
    FisherRao,
    Flatness,
    NoiseWidth,
    RelativeFlatness,
    ShardCase,
    SharpnessResult,
    WorstCase,
)
from curvcli.errors import LossError, UsageError, did_you_mean
from curvcli.linalg.lanczos.lanczos import lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.linalg.vectors import double
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.preconditioned import PreconditionedHessian
from curvcli.operators.surface.balls import (
    Neighbourhood,
    average_rise,
    climb,
    mean_of,
    shard_rises,
    width,
)
from curvcli.operators.surface.invariants import fisher_rao, relative_flatness
from curvcli.operators.surface.line import loss_resolution

# With which the bound of the quadratic model holds.
_PROBABILITY = 0.999
_TOL = 1e-2


def run(subject: Subject, options: SharpnessOptions, journal: Journal) -> Answer[SharpnessResult]:
    """Answer `curvcli sharpness`; see `SharpnessOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    for name in options.measure:
        if name not in MEASURES:
            raise UsageError(
                f"there is no measure {name!r}.{did_you_mean(name, MEASURES)}",
                f"measures: {', '.join(MEASURES)}",
            )
    journal.progress(Stage("loading", 0, None))
    objective = subject.objective
    operator = Hessian(objective, memory=subject.spec.memory_bytes, wanted=5)
    check, _ = check_random_product(journal, operator, subject.spec.seed)
    made: dict[str, Any] = {}
    measuring = _Measuring(subject, options, journal, operator)
    for name in dict.fromkeys(options.measure or USUAL):
        if journal.stop() is not None:
            journal.cut_short(f"ended before {name}")
            break
        journal.progress(Stage(name, 0, None))
        made |= measuring.measured(name)
    return journal.answer(
        SharpnessResult(
            loss=objective.loss,
            parameters=objective.dimension,
            hvp_check=check.difference,
            **made,
        )
    )


class _Measuring:
    """The measures of one target by name, in plain and in adaptive coordinates."""

    def __init__(
        self, subject: Subject, options: SharpnessOptions, journal: Journal, operator: Hessian
    ) -> None:
        self._subject, self._options, self._journal = subject, options, journal
        self._operator, self._seed = operator, subject.spec.seed
        self._theta_N = operator.objective.flat().abs()
        eps = torch.finfo(operator.dtype).eps
        self._rounding = max(8 * eps * abs(operator.objective.loss), loss_resolution(operator))

    def measured(self, name: str) -> dict[str, Any]:
        """The fields of the result that belong to a measure."""
        if name == "relative-flatness":
            return {"relative_flatness": self._relative()}
        if name == "fisher-rao":
            return {"fisher_rao": self._fisher_rao()}
        if name == "m-sharpness":
            return {"m_sharpness": self._shards()}
        of = {"worst": self._worst, "average": self._average, "pac-bayes": self._width}[name]
        field = name.replace("-", "_")
        found = {field: of(adaptive=False)}
        if self._cut(f"ended before {name}, adaptive"):
            return found
        return {**found, f"{field}_adaptive": of(adaptive=True)}

    def _cut(self, note: str) -> bool:
        """Whether time is up; if so, it is said."""
        if self._journal.stop() is None:
            return False
        self._journal.cut_short(note)
        return True

    def _around(self, adaptive: bool) -> tuple[Neighbourhood, float]:
        if adaptive:
            return Neighbourhood(self._operator, self._theta_N), self._options.rho_adaptive
        return Neighbourhood(self._operator), self._options.rho

    def _worst(self, adaptive: bool) -> WorstCase:
        around, rho = self._around(adaptive)
        operator: Hessian = self._operator
        if adaptive:
            operator = PreconditionedHessian(
                operator.objective, diagonal_N=double(self._theta_N).pow(-2), like=operator
            )
        found = lanczos(
            operator, Wanted(1, 0), tol=_TOL, max_matvecs=self._options.max_matvecs,
            capacity=self._operator.plan.capacity, seed=self._seed, recheck=0,
            stop=self._journal.stop, probability=1 - _PROBABILITY,
        )  # fmt: skip
        _, rounding = by_recurrence(self._journal, operator, found)
        zeros = untouched_zeros(operator.objective, at_most=1)
        upper = max([found.upper + rounding, *zeros])
        top_N = found.vectors_KN[0]
        climbed = climb(around, rho, [top_N, -top_N], self._options.steps, self._journal.stop)
        self._cut("the ascents of the worst case ended early")
        model = max(_model(operator, u_N) for u_N in (climbed.u_N, rho * top_N, -rho * top_N))
        slope = float(operator.ranks.norm(operator.gradient))
        here = abs(operator.objective.loss)
        # Of two losses, each as far off as the last digits of the weights move it.
        grown = 1 + abs(climbed.rise) / here if here and math.isfinite(climbed.rise) else 1.0
        residual = (1 + grown) * self._rounding
        return WorstCase(
            found=climbed.rise if math.isfinite(climbed.rise) else None,
            found_residual=residual,
            rho=rho,
            quadratic_lower=max(0.0, model),
            quadratic_upper=rho * slope + 0.5 * rho**2 * max(0.0, upper),
            probability=_PROBABILITY,
            steps=climbed.steps,
            changes_by_rescaling=not adaptive,
        )

    def _average(self, adaptive: bool) -> AverageCase:
        around, rho = self._around(adaptive)
        sigma = rho / math.sqrt(self._operator.n)
        mean = average_rise(around, sigma, self._options.draws, self._seed, self._journal.stop)
        if mean.draws < self._options.draws:
            self._journal.cut_short("ended before all draws were made")
        error = math.inf if mean.standard_error is None else mean.standard_error
        return AverageCase(
            value=_finite(mean.value),
            # L(θ) is the same in all draws: its rounding does not show in their spread.
            standard_error=_finite(math.hypot(error, self._rounding)),
            degrees_of_freedom=max(1, mean.draws - 1),
            sigma=sigma,
            changes_by_rescaling=not adaptive,
        )

    def _width(self, adaptive: bool) -> NoiseWidth:
        around, rho = self._around(adaptive)
        options = self._options
        first = rho / math.sqrt(self._operator.n)
        found = width(around, options.rise, first, options.draws, self._seed, self._journal.stop)
        if found is None and self._journal.stop() is not None:
            self._journal.cut_short("ended before the noise was known that raises the loss so far")
        elif found is None:
            self._journal.note(f"no noise raises the expected loss by {options.rise:g}")
        return NoiseWidth(
            value=found.sigma if found else None,
            standard_error=found.standard_error if found else None,
            degrees_of_freedom=options.draws - 1,
            rise=options.rise,
            changes_by_rescaling=not adaptive,
        )

    def _relative(self) -> RelativeFlatness | None:
        found = relative_flatness(
            self._operator, self._options.probes, self._seed, self._journal.stop
        )
        if not found:
            self._journal.note("relative flatness is left out: no parameter is a matrix")
            return None
        draws = len(next(iter(found.values())))
        if draws < self._options.probes:
            self._journal.cut_short("ended before all products for relative flatness")
        layers = []
        for name, values in found.items():
            mean = mean_of(values)
            layers.append(Flatness(name, mean.value, mean.standard_error, max(1, draws - 1)))
        whole = mean_of([sum(column) for column in zip(*found.values(), strict=True)])
        return RelativeFlatness(
            value=whole.value,
            standard_error=whole.standard_error,
            degrees_of_freedom=max(1, draws - 1),
            layers=layers,
            changes_by_rescaling=False,
        )

    def _fisher_rao(self) -> FisherRao | None:
        objective = dataclasses.replace(self._operator.objective, weight_decay=0.0)
        try:
            norm = fisher_rao(objective)
        except LossError as error:
            if self._options.measure:
                raise
            self._journal.note(f"the Fisher-Rao norm is left out: {error.message}")
            return None
        return FisherRao(
            value=norm.value,
            standard_error=norm.standard_error,
            degrees_of_freedom=max(1, norm.parts - 1),
            changes_by_rescaling=False,
        )

    def _shards(self) -> ShardCase:
        options = self._options
        if not self._operator.objective.splittable:
            raise LossError(
                "m-sharpness cuts the data into shards, and these batches cannot be cut",
                "leave m-sharpness out",
            )
        rises = shard_rises(
            self._operator, options.rho, options.shard, options.shards, self._journal.stop
        )
        self._cut("ended before all shards were looked at")
        mean = mean_of(rises)
        return ShardCase(
            value=_finite(mean.value),
            standard_error=_finite(mean.standard_error),
            degrees_of_freedom=max(1, mean.draws - 1),
            shard=options.shard,
            rho=options.rho,
            changes_by_rescaling=True,
        )


def _model(operator: Hessian, u_N: Tensor) -> float:
    """gᵀu + ½ uᵀHu, in the coordinates of the operator."""
    wide_N, dot = double(u_N), operator.ranks.dot
    first = dot(double(operator.gradient), wide_N)
    return float(first + 0.5 * dot(wide_N, double(operator.matvec(u_N))))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
