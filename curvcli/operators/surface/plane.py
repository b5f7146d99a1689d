"""The loss on a line or plane through θ, part by part of the data, without gradients.

Shapes: ``N`` parameters, ``P`` parts of the data.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvcli.errors import DataError
from curvcli.objective.batch import Batch
from curvcli.objective.objective import Objective, decay
from curvcli.operators.curvature.curvature import Curvature
from curvcli.operators.signals.sanity import right_answers

# Parts that sampling errors are told from, where the data can be cut.
PARTS = 16
# Fewer parts tell no error.
_FEWEST = 3


@dataclass(frozen=True)
class Sampled:
    """The loss at one point, from parts of the data."""

    sums_P: Tensor
    """Loss terms of each part, added up; float64."""
    weights_P: Tensor
    """How many loss terms."""
    right_P: Tensor
    """Right answers of each part; NaN where the loss has no such thing."""
    answers: int
    decay: float
    """(wd/2) ‖θ‖²."""

    @property
    def loss(self) -> float:
        """L."""
        return float(self.sums_P.sum() / self.weights_P.sum()) + self.decay

    @property
    def accuracy(self) -> float | None:
        """Share of right answers."""
        right = float(self.right_P.sum())
        return right / self.answers if math.isfinite(right) and self.answers else None

    def error(self, *others: tuple[float, "Sampled"]) -> float | None:
        """Standard error of L + Σ factor · L_other, all from the same parts; None with too few parts.

        Of a ratio of sums: √(n/(n−1) Σ_p (s_p − w_p s̄)²) / W.
        """
        n, whole = len(self.sums_P), self.weights_P.sum()
        if n < _FEWEST:
            return None
        sums_P = self.sums_P + sum(factor * other.sums_P for factor, other in others)
        rest_P = sums_P - self.weights_P * (sums_P.sum() / whole)
        found = float((n / (n - 1) * rest_P.square().sum()).sqrt() / whole)
        return found if math.isfinite(found) else None

    def kept(self) -> dict[str, Tensor]:
        """As tensors, for a log."""
        return {
            "sums": self.sums_P, "weights": self.weights_P, "right": self.right_P,
            "answers": torch.tensor(self.answers),
            "decay": torch.tensor(self.decay, dtype=torch.float64),
        }  # fmt: skip


def sampled(kept: Mapping[str, Tensor]) -> Sampled:
    """What `Sampled.kept` made tensors of."""
    return Sampled(
        kept["sums"], kept["weights"], kept["right"], int(kept["answers"]), float(kept["decay"])
    )


class Surface:
    """(s, t, …) -> L(θ + s Δ₁ + t Δ₂ + …); weights and buffers are restored to the bit after each call.

    Args:
        objective: L.
        directions: Δ₁, Δ₂, …
        operator: whose micro-batches and kernels are used.
        statistics: whose data running statistics of BatchNorm are gathered from at every point; None: they are kept.
    """

    def __init__(
        self,
        objective: Objective,
        directions: Sequence[Tensor],
        operator: Curvature[Any],
        statistics: Objective | None = None,
    ) -> None:
        self.objective, self.directions, self.operator = objective, directions, operator
        self._statistics = statistics
        self._part = part_size(objective)

    def __call__(self, *place: float) -> Sampled:
        """The loss there."""
        return self.operator.within_memory(lambda: self._at(place))

    def _at(self, place: Sequence[float]) -> Sampled:
        objective = self.objective
        step_N = sum(
            (t * d_N for t, d_N in zip(place, self.directions, strict=True)),
            torch.zeros_like(self.directions[0]),
        )
        with torch.no_grad(), objective.moved(step_N), self.operator.kernels.active():
            amount = decay(objective.weight_decay, objective.parameters, objective.ranks)
            with objective.evaluation():  # new statistics are written to its copies of buffers
                if self._statistics is not None:
                    self._renew(self._statistics)
                return self._evaluated(amount)

    def _evaluated(self, amount: float) -> Sampled:
        found: list[_Terms] = []
        for batch in self.objective.batches:
            most = self.operator.micro_batch or batch.size
            # As many whole parts at a time as there is memory for.
            for parts in batch.pieces(max(self._part, most - most % self._part)):
                found += self._parts(parts, most)
        sums, weights, right, answers = zip(*found, strict=True)
        found_3P = torch.tensor([sums, weights, right], dtype=torch.float64)
        # Where the next points lie hangs on it.
        sums_P, weights_P, right_P = self.objective.ranks.first(found_3P)
        return Sampled(sums_P, weights_P, right_P, sum(answers), amount)

    def _parts(self, batch: Batch, most: int) -> "list[_Terms]":
        """Part by part; from one pass through the network where each sample has its row of the outputs."""
        parts = list(batch.pieces(self._part))
        if len(parts) == 1 or not self._rows:
            return [_sum([_terms(self.objective, q) for q in p.pieces(most)]) for p in parts]
        terms: Any = self.objective.terms
        outputs = terms.outputs(self.objective.model, batch.data).split(self._part)
        return [_of_outputs(terms, o, p.data) for o, p in zip(outputs, parts, strict=True)]

    @cached_property
    def _rows(self) -> bool:
        """Whether the loss is one of outputs whose first dimension runs over the samples, by batches of two sizes."""
        terms: Any = self.objective.terms
        if not _has_outputs(terms):
            return False
        batch = self.objective.batches[0]
        for few in (next(batch.pieces(size)) for size in (2, 3)):
            outputs = terms.outputs(self.objective.model, few.data)
            if not isinstance(outputs, Tensor) or outputs.shape[:1] != (few.size,):
                return False
        return True

    def _renew(self, objective: Objective) -> None:
        """Running statistics from all batches, each counting alike (Izmailov et al. 2018, section 3.1)."""
        norms = running_norms(objective.model)
        with _gathering(norms):
            for batch in objective.batches:
                for piece in batch.pieces(self.operator.micro_batch or batch.size):
                    try:
                        objective.terms(objective.model, piece.data)
                    except ValueError as error:
                        if "more than 1 value" not in str(error):
                            raise
                        raise DataError(
                            "statistics of BatchNorm cannot be gathered from a batch of one sample",
                            "pass --norm-statistics keep, or a larger --batch-size",
                        ) from None


@contextmanager
def _gathering(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """The layers normalise by the batch, and average what they see."""
    before = [(m, m.training, m.momentum) for m in norms]
    try:
        for module in norms:
            module.reset_running_stats()
            module.training, module.momentum = True, None
        yield
    finally:
        for module, training, momentum in before:
            module.training, module.momentum = training, momentum


def running_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers that normalise by running statistics."""
    return [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        and m.running_mean is not None
        and not m.training
    ]


def part_size(objective: Objective) -> int:
    """Samples of a part: a batch, or about 1 / `PARTS` of all where there are fewer batches that can be cut."""
    if not objective.splittable or len(objective.batches) >= PARTS:
        return max(batch.size for batch in objective.batches)
    return max(1, math.ceil(objective.samples / PARTS))


class _Terms(NamedTuple):
    """Of a piece of the data."""

    total: float
    """Sum of the loss terms."""
    weight: float
    """How many."""
    right: float
    """Right answers; NaN where the loss has no such thing."""
    answers: int


def _has_outputs(terms: Any) -> bool:
    return hasattr(terms, "outputs") and hasattr(terms, "targets")


def _terms(objective: Objective, batch: Batch) -> _Terms:
    terms: Any = objective.terms
    if not _has_outputs(terms):
        total, count = terms(objective.model, batch.data)
        return _Terms(float(total), float(count), math.nan, 0)
    return _of_outputs(terms, terms.outputs(objective.model, batch.data), batch.data)


def _of_outputs(terms: Any, outputs: Tensor, data: Any) -> _Terms:
    total, count = terms.of_outputs(outputs, data)
    right = right_answers(str(getattr(terms, "name", "")), outputs, terms.targets(data))
    return _Terms(float(total), float(count), *(right or (math.nan, 0)))


def _sum(pieces: Sequence[_Terms]) -> _Terms:
    total, count, right, answers = map(sum, zip(*pieces, strict=True))
    return _Terms(total, count, right, answers)
